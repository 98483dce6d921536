"""Names, folders and destinations that somebody has, sooner or later."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from fluxtune.config.dataset import DatasetConfig
from fluxtune.config.layers import resolve
from fluxtune.dataset.folder import Item, list_folders
from fluxtune.errors import UsageError
from fluxtune.events import Event, ignore
from fluxtune.exporting.dataset import export_dataset
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
