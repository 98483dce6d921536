"""A data set in another layout: what it reads back as, what is said, and that the original is left alone."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from itertools import permutations
from pathlib import Path

import pytest
import skimage.data
import tomli
from PIL import Image

from fluxtune.config.dataset import DatasetConfig
from fluxtune.config.layers import resolve
from fluxtune.dataset.captions import with_trigger
from fluxtune.dataset.folder import list_folders
from fluxtune.dataset.images import read_mask
from fluxtune.errors import DataError, StorageError, UsageError, VerificationError
from fluxtune.events import ignore
from fluxtune.exporting import dataset as exporting
from fluxtune.exporting.conventions import CONVENTIONS
from fluxtune.exporting.dataset import Exported, export_dataset
from fluxtune.exporting.layouts import Layout
from fluxtune.files import sha256_of


def photograph(number: int) -> Image.Image:
    """One of several parts of a real photograph."""
    left, top = number % 6 * 50, number // 6 * 60
    return Image.fromarray(skimage.data.astronaut()).crop((left, top, left + 96, top + 80 + number))


def put(path: Path, number: int, caption: str | None = None, mask: bool = False, alpha: bool = False) -> None:
    """A picture, and what belongs to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = photograph(number)
    shade = Image.linear_gradient("L").resize(picture.size)
    if alpha:
        picture.putalpha(shade)
    picture.save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    if mask:
        shade.rotate(180).save(path.with_name(f"{path.stem}-masklabel.png"))


@pytest.fixture
def original(tmp_path: Path) -> DatasetConfig:
    """Everything at once: nested folders, names that mean something, masks, transparency, regularization, odd names."""
    root = tmp_path / "original"
    put(root / "photos" / "a b.png", 0, 'a "zorvex", on grass: #1, 50 % \\ [x]')
    put(root / "photos" / "é 漢 [red].jpg", 1, "zorvex\nat night", mask=True)
    put(root / "photos" / "10_zorvex dog" / "a b.png", 2)
    put(root / "photos" / "night" / "deep" / "d.png", 3, "a dog", mask=True)
    put(root / "photos" / "same.png", 4, "the zorvex of two")
    put(root / "photos" / "same.jpg", 5)
    put(root / "cut-out" / "e.png", 6, "zorvex, cut out", alpha=True)
    put(root / "others" / "f.png", 7, "a dog")
    put(root / "others" / "g.png", 8)
    put(root / "others" / "h.png", 9, "a dog in the sun", mask=True)
    rows = [
        {"path": str(root / "photos"), "repeats": 3, "weight": 0.5},
        {"path": str(root / "cut-out"), "masks": "alpha"},
        {"path": str(root / "others"), "kind": "regularization", "weight": 2.0},
    ]
    shared = {"trigger": "zorvex", "class_word": "dog", "resolution": [64, 96], "flip": True, "caption_dropout": 0.2}
    return DatasetConfig.model_validate({"folders": rows, **shared, "unmasked_weight": 0.3, "crops": 2})


def read(path: Path) -> DatasetConfig:
    """A data set as `fluxtune train PATH` takes it."""
    flags: dict[str, tuple[str, object]] = {"dataset.folders": ("FOLDER", [{"path": str(path)}])}
    return resolve(preset=None, config_file=None, flags=flags, sets=[], working_folder=path.parent).config.dataset


WRITTEN_OUT = (Layout.ONETRAINER, Layout.DIFFUSERS)
"""Layouts in which the captions hold the trigger word."""


def content(dataset: DatasetConfig, *, as_trained: bool = False) -> tuple[object, ...]:
    """All that a data set says, whatever its folders are called: shared settings and each picture.

    With ``as_trained``, captions are what is trained on: with the trigger or class word that is put in front of them.
    """
    pictures: Counter[tuple[object, ...]] = Counter()
    for item in list_folders(dataset.folders).items:
        mask = None if item.mask is None else read_mask(item.mask, item.path).tobytes()
        row = item.folder
        caption = item.caption or ""
        if as_trained:
            is_subject = row.kind == "train"
            caption = (
                with_trigger(caption, dataset.trigger or "") if is_subject else caption or dataset.class_word or ""
            )
        pictures[sha256_of(item.path), caption, mask, item.repeats, row.kind, row.weight] += 1
    return dataset.model_dump(exclude={"folders"}), pictures


def export(dataset: DatasetConfig, layout: Layout, destination: Path, **options: bool) -> Exported:
    return export_dataset(dataset, layout, destination, ignore, **options)


@pytest.mark.parametrize("layout", list(Layout))
def test_what_is_written_reads_back_as_what_it_was_made_of(
    original: DatasetConfig, tmp_path: Path, layout: Layout
) -> None:
    exported = export(original, layout, tmp_path / "copy")
    as_trained = layout in WRITTEN_OUT
    assert content(read(Path(exported.description)), as_trained=as_trained) == content(original, as_trained=as_trained)
    assert (exported.pictures, exported.captions, exported.masks) == (10, 9, 4)


@pytest.mark.parametrize(("first", "second"), list(permutations(Layout, 2)))
def test_nothing_is_lost_from_one_layout_to_another(
    original: DatasetConfig, tmp_path: Path, first: Layout, second: Layout
) -> None:
    one = export(original, first, tmp_path / "one")
    two = export(read(Path(one.description)), second, tmp_path / "two")
    as_trained = bool({first, second} & set(WRITTEN_OUT))
    assert content(read(Path(two.description)), as_trained=as_trained) == content(original, as_trained=as_trained)


def test_a_folder_with_our_own_description_is_read_as_a_folder(original: DatasetConfig, tmp_path: Path) -> None:
    export(original, Layout.METADATA, tmp_path / "copy")
    assert content(read(tmp_path / "copy")) == content(original)


@pytest.mark.parametrize("layout", list(Layout))
def test_an_export_that_was_moved_still_reads(original: DatasetConfig, tmp_path: Path, layout: Layout) -> None:
    export(original, layout, tmp_path / "copy")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "copy", tmp_path / "elsewhere" / "moved")
    as_trained = layout in WRITTEN_OUT
    moved = read(tmp_path / "elsewhere" / "moved" / CONVENTIONS[layout].file)
    assert content(moved, as_trained=as_trained) == content(original, as_trained=as_trained)


@pytest.mark.parametrize("layout", [Layout.KOHYA, Layout.SIMPLETUNER])
def test_a_trainer_without_triggers_sees_the_trigger_in_front_of_each_caption_that_lacks_it(
    original: DatasetConfig, tmp_path: Path, layout: Layout
) -> None:
    exported = export(original, layout, tmp_path / "copy")
    Path(exported.beside or "").unlink()
    captions = Counter(item.caption for item in list_folders(read(Path(exported.description)).folders).items)
    assert captions["zorvex, a dog"] == 1
    assert captions["zorvex at night"] == 1
    assert captions["dog"] == 1, "a regularization picture without a caption is captioned with the class word"


def test_the_trainers_file_says_for_kohya_what_its_documentation_wants(original: DatasetConfig, tmp_path: Path) -> None:
    export(original, Layout.KOHYA, tmp_path / "copy")
    config = tomli.loads((tmp_path / "copy" / "dataset_config.toml").read_text(encoding="utf-8"))
    subsets = {Path(each["image_dir"]).name: each for each in config["datasets"][0]["subsets"]}
    assert [each["resolution"] for each in config["datasets"]] == [64, 64, 96, 96]
    assert (subsets["photos"]["num_repeats"], subsets["cut-out"]["alpha_mask"]) == (3, True)
    assert subsets["others"]["is_reg"] is True
    masked = config["datasets"][1]["subsets"]
    assert all(Path(each["conditioning_data_dir"]).is_dir() for each in masked)
    assert not any({"is_reg", "class_tokens"} & each.keys() for each in masked)


def test_every_picture_of_a_masked_folder_has_a_mask_where_the_trainer_wants_that(
    original: DatasetConfig, tmp_path: Path
) -> None:
    export(original, Layout.SIMPLETUNER, tmp_path / "copy")
    backends = json.loads((tmp_path / "copy" / "multidatabackend.json").read_text(encoding="utf-8"))
    by_name = {each["id"]: each for each in backends}
    paired = [each for each in backends if "conditioning_data" in each]
    assert paired
    for each in paired:
        pictures = {file.name for file in Path(each["instance_data_dir"]).iterdir() if file.suffix != ".txt"}
        masks = Path(by_name[each["conditioning_data"]]["instance_data_dir"])
        assert {file.name for file in masks.iterdir()} == pictures


def test_what_a_layout_cannot_hold_is_said_and_kept_beside(original: DatasetConfig, tmp_path: Path) -> None:
    exported = export(original, Layout.AI_TOOLKIT, tmp_path / "copy")
    assert exported.kept_beside == ("dataset.crops", "dataset.class_word")
    assert exported.beside == str(tmp_path / "copy" / "ai-toolkit.fluxtune.toml")
    assert "weight of photos" in export(original, Layout.KOHYA, tmp_path / "other").kept_beside


def test_ours_can_hold_everything(original: DatasetConfig, tmp_path: Path) -> None:
    exported = export(original, Layout.FOLDER, tmp_path / "copy")
    assert (exported.beside, exported.kept_beside, exported.remarks) == (None, (), ())


def test_two_pictures_of_one_name_get_two_and_that_is_said(original: DatasetConfig, tmp_path: Path) -> None:
    exported = export(original, Layout.FOLDER, tmp_path / "copy")
    assert exported.renamed == {"photos/same.png": "photos/same-2.png"}


def test_pictures_that_the_trainer_does_not_read_are_said(tmp_path: Path) -> None:
    put(tmp_path / "photos" / "a.tiff", 0, "a dog")
    dataset = DatasetConfig.model_validate({"folders": [{"path": str(tmp_path / "photos")}]})
    assert export(dataset, Layout.KOHYA, tmp_path / "copy").remarks == (
        "kohya does not read photos/a.tiff: save them as PNG for it",
    )


def test_the_placeholder_of_the_trigger_is_written_out_where_a_trainer_knows_none(tmp_path: Path) -> None:
    put(tmp_path / "photos" / "a.png", 0, "a [trigger] asleep")
    dataset = DatasetConfig.model_validate({"folders": [{"path": str(tmp_path / "photos")}], "trigger": "zorvex"})
    exported = export(dataset, Layout.KOHYA, tmp_path / "copy")
    assert (tmp_path / "copy" / "photos" / "a.txt").read_text() == "a zorvex asleep\n"
    assert exported.remarks == ("[trigger] is written out in the captions of photos/a.png",)
    export(dataset, Layout.AI_TOOLKIT, tmp_path / "kept")
    assert (tmp_path / "kept" / "photos" / "a.txt").read_text() == "a [trigger] asleep\n"


def test_pictures_may_be_links(original: DatasetConfig, tmp_path: Path) -> None:
    exported = export(original, Layout.FOLDER, tmp_path / "copy", link=True)
    assert exported.linked == exported.pictures
    copy, source = tmp_path / "copy" / "cut-out" / "e.png", tmp_path / "original" / "cut-out" / "e.png"
    assert copy.samefile(source)


def test_where_links_are_not_possible_copies_are_made(
    original: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", none)
    assert export(original, Layout.FOLDER, tmp_path / "copy", link=True).linked == 0


def test_the_original_is_left_as_it_was(original: DatasetConfig, tmp_path: Path) -> None:
    def stamps() -> dict[Path, tuple[int, bytes]]:
        files = [path for path in (tmp_path / "original").rglob("*") if path.is_file()]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = stamps()
    for layout in Layout:
        export(original, layout, tmp_path / layout.value)
    assert stamps() == before


@pytest.mark.parametrize("place", ["original/photos", "original/photos/copy", "full"])
def test_a_destination_that_is_taken_or_within_the_data_set_is_refused(
    original: DatasetConfig, tmp_path: Path, place: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError):
        export(original, Layout.FOLDER, tmp_path / place)


def test_a_crash_leaves_nothing_behind(
    original: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(exporting.shutil, "copyfile", full)
    with pytest.raises(StorageError, match="no space left"):
        export(original, Layout.FOLDER, tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["original"]


def test_an_export_that_does_not_read_back_is_refused(
    original: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_lacking", lambda *_: {})
    with pytest.raises(VerificationError, match="reads back otherwise"):
        export(original, Layout.KOHYA, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_errors_in_the_data_refuse_the_export_unless_they_are_accepted(original: DatasetConfig, tmp_path: Path) -> None:
    (tmp_path / "original" / "cut-out" / "e.png").write_bytes(b"damaged")
    put(tmp_path / "original" / "cut-out" / "z.png", 10, "zorvex")
    with pytest.raises(DataError, match="the content is no PNG"):
        export(original, Layout.FOLDER, tmp_path / "copy")
    exported = export(original, Layout.FOLDER, tmp_path / "copy", accept_errors=True)
    assert exported.left_out == ("cut-out/e.png",)
