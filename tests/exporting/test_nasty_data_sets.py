"""Names, folders and destinations that somebody has, sooner or later."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import tomli
from PIL import ExifTags, Image

from fluxtune.config.dataset import DatasetConfig
from fluxtune.config.layers import resolve
from fluxtune.dataset.folder import Item, list_folders
from fluxtune.errors import UsageError, VerificationError
from fluxtune.events import Event, Warning, ignore
from fluxtune.exporting.conventions import CONVENTIONS
from fluxtune.exporting.dataset import export_dataset
from fluxtune.exporting.groups import Group
from fluxtune.exporting.layouts import Layout


def put(path: Path, caption: str | None = None, mask: Path | None = None, size: tuple[int, int] = (80, 72)) -> None:
    """A picture, with a caption beside it and a mask where one is wanted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").resize(size).convert("RGB").save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    if mask is not None:
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.radial_gradient("L").resize(size).save(mask)


def data_set(*rows: dict[str, object], **shared: object) -> DatasetConfig:
    return DatasetConfig.model_validate({"folders": list(rows), **shared})


def again(dataset: DatasetConfig, layout: Layout, destination: Path) -> tuple[Item, ...]:
    """The pictures of an export, as they are read from it."""
    description = export_dataset(dataset, layout, destination, ignore).description
    flags: dict[str, tuple[str, object]] = {"dataset.folders": ("FOLDER", [{"path": description}])}
    resolved = resolve(preset=None, config_file=None, flags=flags, sets=[], working_folder=destination.parent)
    return list_folders(resolved.config.dataset.folders).items


@pytest.mark.parametrize("layout", list(Layout))
def test_names_in_both_forms_of_an_accent_are_told_apart(tmp_path: Path, layout: Layout) -> None:
    put(tmp_path / "photos" / f"{unicodedata.normalize('NFC', 'é')}.png", "a dog")
    put(tmp_path / "photos" / f"{unicodedata.normalize('NFD', 'é')}.png")
    seen = again(data_set({"path": str(tmp_path / "photos")}), layout, tmp_path / "copy")
    assert [item.caption for item in seen] == ["a dog", "a dog"]


@pytest.mark.parametrize("layout", list(Layout))
def test_names_of_full_length_keep_their_captions_and_masks(tmp_path: Path, layout: Layout) -> None:
    name = f"{'é' * 125}.png"
    put(tmp_path / "photos" / name, "a dog", mask=tmp_path / "masks" / name)
    rows = {"path": str(tmp_path / "photos"), "masks": str(tmp_path / "masks")}
    (item,) = again(data_set(rows), layout, tmp_path / "copy")
    assert item.caption == "a dog"
    assert item.mask is not None


@pytest.mark.parametrize("layout", list(Layout))
def test_folders_that_are_called_like_settings_of_masks_are_folders(tmp_path: Path, layout: Layout) -> None:
    for name in ("auto", "alpha", "none"):
        put(tmp_path / "photos" / name / "a.png", f"a dog in {name}")
    rows = [{"path": str(tmp_path / "photos" / name), "masks": name} for name in ("auto", "alpha", "none")]
    seen = again(data_set(*rows), layout, tmp_path / "copy")
    assert [item.mask is not None for item in seen] == [False, True, False]


def test_a_folder_in_the_working_folder_is_not_what_masks_says(tmp_path: Path) -> None:
    put(tmp_path / "none" / "a.png")
    flags: dict[str, tuple[str, object]] = {"dataset.folders": ("FOLDER", [{"path": "none", "masks": "none"}])}
    resolved = resolve(preset=None, config_file=None, flags=flags, sets=[], working_folder=tmp_path)
    assert resolved.config.dataset.folders[0].masks == "none"


@pytest.mark.parametrize("place", ["masks/copy", "dangling", "\udcff"])
def test_a_destination_that_would_do_harm_is_refused_before_anything_is_read(tmp_path: Path, place: str) -> None:
    put(tmp_path / "photos" / "a.png", "a dog", mask=tmp_path / "masks" / "a.png")
    (tmp_path / "dangling").symlink_to("nowhere")
    dataset = data_set({"path": str(tmp_path / "photos"), "masks": str(tmp_path / "masks")})
    events: list[Event] = []
    with pytest.raises(UsageError):
        export_dataset(dataset, Layout.FOLDER, tmp_path / place, events.append)
    assert not events


@pytest.mark.parametrize("is_link", [False, True])
def test_an_empty_folder_may_be_the_destination(tmp_path: Path, is_link: bool) -> None:
    put(tmp_path / "photos" / "a.png", "a dog")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    seen = again(
        data_set({"path": str(tmp_path / "photos")}), Layout.KOHYA, tmp_path / ("link" if is_link else "empty")
    )
    assert [item.caption for item in seen] == ["a dog"]
    assert (tmp_path / "link").is_symlink()
    assert not list(tmp_path.glob(".*"))


def test_files_that_are_not_in_the_copy_are_told(tmp_path: Path) -> None:
    put(tmp_path / "photos" / "a.png", "a dog", mask=tmp_path / "photos" / "b-masklabel.png")
    (tmp_path / "photos" / "c.heic").write_bytes(b"a phone's picture")
    (tmp_path / "photos" / "d.txt").write_text("a cat")
    events: list[Event] = []
    export_dataset(data_set({"path": str(tmp_path / "photos")}), Layout.FOLDER, tmp_path / "copy", events.append)
    told = " ".join(event.message for event in events if isinstance(event, Warning))
    assert all(name in told for name in ("b-masklabel.png", "c.heic", "d.txt"))


def test_pictures_without_a_mask_are_apart_from_others_for_ai_toolkit(tmp_path: Path) -> None:
    put(tmp_path / "photos" / "a.png", "a dog", mask=tmp_path / "photos" / "a-masklabel.png")
    put(tmp_path / "photos" / "b.png", "a cat")
    dataset = data_set({"path": str(tmp_path / "photos")})
    exported = export_dataset(dataset, Layout.AI_TOOLKIT, tmp_path / "copy", ignore)
    assert list(exported.directories) == ["photos", "photos-2"]


@pytest.mark.parametrize("layout", [Layout.KOHYA, Layout.AI_TOOLKIT, Layout.SIMPLETUNER])
def test_the_placeholder_in_a_regularization_caption_is_the_class_word(tmp_path: Path, layout: Layout) -> None:
    put(tmp_path / "dogs" / "a.png", "a [trigger] asleep")
    dataset = data_set({"path": str(tmp_path / "dogs"), "kind": "regularization"}, trigger="zorvex", class_word="dog")
    export_dataset(dataset, layout, tmp_path / "copy", ignore)
    assert (tmp_path / "copy" / "dogs" / "a.txt").read_text() == "a dog asleep\n"


def test_masks_are_called_as_ai_toolkit_looks_for_them(tmp_path: Path) -> None:
    put(tmp_path / "photos" / "a.jpg", "a dog", mask=tmp_path / "masks" / "a.PNG")
    dataset = data_set({"path": str(tmp_path / "photos"), "masks": str(tmp_path / "masks")})
    export_dataset(dataset, Layout.AI_TOOLKIT, tmp_path / "copy", ignore)
    assert (tmp_path / "copy" / "photos-masks" / "a.png").read_bytes() == (tmp_path / "masks" / "a.PNG").read_bytes()


def test_masks_have_the_size_of_their_pictures_for_kohya(tmp_path: Path) -> None:
    put(tmp_path / "photos" / "a.png", "a dog", size=(80, 72))
    put(tmp_path / "masks" / "a.png", size=(160, 144))
    dataset = data_set({"path": str(tmp_path / "photos"), "masks": str(tmp_path / "masks")})
    export_dataset(dataset, Layout.KOHYA, tmp_path / "copy", ignore)
    assert Image.open(tmp_path / "copy" / "photos-masks" / "a.png").size == (80, 72)


def test_masked_regularization_without_a_caption_has_the_class_word_for_kohya(tmp_path: Path) -> None:
    put(tmp_path / "dogs" / "a.png", mask=tmp_path / "dogs" / "a-masklabel.png")
    dataset = data_set({"path": str(tmp_path / "dogs"), "kind": "regularization"}, class_word="dog")
    exported = export_dataset(dataset, Layout.KOHYA, tmp_path / "copy", ignore)
    (subset,) = tomli.loads(Path(exported.description).read_text())["datasets"][0]["subsets"]
    assert subset["caption_prefix"] == "dog"
    assert not {"is_reg", "class_tokens"} & subset.keys()


def test_pictures_that_are_stored_turned_are_said_for_kohya(tmp_path: Path) -> None:
    put(tmp_path / "photos" / "a.jpg", "a dog")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.open(tmp_path / "photos" / "a.jpg").save(tmp_path / "photos" / "a.jpg", exif=exif)
    exported = export_dataset(data_set({"path": str(tmp_path / "photos")}), Layout.KOHYA, tmp_path / "copy", ignore)
    assert any("do not turn photos/a.jpg upright" in remark for remark in exported.remarks)


def test_pictures_without_a_caption_are_said_where_the_trainer_wants_one(tmp_path: Path) -> None:
    put(tmp_path / "photos" / "a.png")
    dataset = data_set({"path": str(tmp_path / "photos")})
    exported = export_dataset(dataset, Layout.SIMPLETUNER, tmp_path / "copy", ignore)
    assert "simpletuner wants a caption for each picture: photos/a.png have none" in exported.remarks


def test_masks_without_buckets_are_said_for_ai_toolkit(tmp_path: Path) -> None:
    put(tmp_path / "photos" / "a.png", "a dog", mask=tmp_path / "photos" / "a-masklabel.png")
    dataset = data_set({"path": str(tmp_path / "photos")}, buckets=False)
    exported = export_dataset(dataset, Layout.AI_TOOLKIT, tmp_path / "copy", ignore)
    assert "ai-toolkit takes masks with buckets alone: set dataset.buckets" in exported.remarks


@pytest.mark.parametrize("times", [0, 2])
def test_a_folder_that_is_not_listed_once_in_what_was_written_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    put(tmp_path / "photos" / "a.png", "a dog")
    put(tmp_path / "photos" / "night" / "a.png", "a dog at night")
    written = CONVENTIONS[Layout.FOLDER]

    def described(groups: Sequence[Group], dataset: DatasetConfig, root: Path) -> str:
        return written.describe([groups[0], *[groups[1]] * times], dataset, root)

    monkeypatch.setitem(CONVENTIONS, Layout.FOLDER, replace(written, describe=described))
    with pytest.raises(VerificationError):
        export_dataset(data_set({"path": str(tmp_path / "photos")}), Layout.FOLDER, tmp_path / "copy", ignore)
    assert not (tmp_path / "copy").exists()


def test_regularization_apart_from_the_subject_is_not_left_out_by_kohya(tmp_path: Path) -> None:
    put(tmp_path / "photos" / "a.png", "a zorvex", mask=tmp_path / "photos" / "a-masklabel.png")
    put(tmp_path / "dogs" / "a.png", "a dog")
    rows = [{"path": str(tmp_path / "photos")}, {"path": str(tmp_path / "dogs"), "kind": "regularization"}]
    exported = export_dataset(data_set(*rows), Layout.KOHYA, tmp_path / "copy", ignore)
    subsets = [each["subsets"] for each in tomli.loads(Path(exported.description).read_text())["datasets"]]
    assert not any("is_reg" in each for (each,) in subsets)
    assert "kind of dogs" in exported.kept_beside


@pytest.mark.parametrize(
    ("layout", "remark"),
    [
        (Layout.KOHYA, "kohya's trainers see regularization as often as the subject, whatever its repeats are"),
        (
            Layout.SIMPLETUNER,
            "simpletuner keeps what the base model makes of regularization, and does not learn its pictures",
        ),
    ],
)
def test_what_regularization_means_elsewhere_is_said(tmp_path: Path, layout: Layout, remark: str) -> None:
    put(tmp_path / "photos" / "a.png", "a zorvex")
    put(tmp_path / "dogs" / "a.png", "a dog")
    rows = [{"path": str(tmp_path / "photos")}, {"path": str(tmp_path / "dogs"), "kind": "regularization"}]
    assert remark in export_dataset(data_set(*rows), layout, tmp_path / "copy", ignore).remarks
