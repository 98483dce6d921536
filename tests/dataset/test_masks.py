"""Masks: which belongs to which picture, what is refused, what they come to on the grid of tokens."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image
from zoo import half_transparent, photograph

from fluxtune.config.dataset import DatasetConfig, FolderConfig
from fluxtune.config.schema import Config
from fluxtune.dataset.caption_checks import ESTIMATES
from fluxtune.dataset.folder import list_folders
from fluxtune.dataset.images import CENTRE, Crop
from fluxtune.dataset.masks import on_tokens
from fluxtune.dataset.pictures import read_folders
from fluxtune.dataset.validation import validate
from fluxtune.errors import DataError
from fluxtune.events import Finding, ignore


def folder_with(path: Path, *names: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        photograph().rotate(90 * index).resize((96, 64)).save(path / name)
        (path / name).with_suffix(".txt").write_text(f"a cup, turned {index} times")
    return path


def half_white(path: Path, size: tuple[int, int] = (96, 64)) -> Path:
    """A mask whose left half is white."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    mask.save(path)
    return path


def row(path: Path, masks: str = "auto") -> FolderConfig:
    return FolderConfig(path=str(path), masks=masks)


def findings_of(folder: FolderConfig) -> list[Finding]:
    config = Config.model_validate({"dataset": {"folders": [folder], "resolution": [64]}})
    findings = validate(config, ESTIMATES, 16, ignore).findings
    return [each for each in findings if "mask" in each.check or each.severity == "error"]


def test_a_mask_beside_its_picture_belongs_to_it_and_is_no_picture(tmp_path: Path) -> None:
    folder_with(tmp_path, "a.jpg", "b.jpg")
    mask = half_white(tmp_path / "a-masklabel.png")
    listing = list_folders([row(tmp_path)])
    assert [(item.name, item.mask) for item in listing.items] == [("a.jpg", mask), ("b.jpg", None)]
    assert listing.findings == ()


def test_masks_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    folder_with(tmp_path / "photos", "a.jpg")
    folder_with(tmp_path / "photos" / "more", "a.jpg")
    masks = [half_white(tmp_path / "masks" / name) for name in ("a.png", "more/a.png")]
    listing = list_folders([row(tmp_path / "photos", str(tmp_path / "masks"))])
    assert [item.mask for item in listing.items] == masks


def test_masks_in_a_folder_within_the_data_set_are_no_pictures(tmp_path: Path) -> None:
    folder_with(tmp_path, "a.jpg")
    mask = half_white(tmp_path / "masks" / "a.png")
    assert [(item.name, item.mask) for item in list_folders([row(tmp_path, str(tmp_path / "masks"))]).items] == [
        ("a.jpg", mask)
    ]


def test_a_caption_beside_a_mask_is_none(tmp_path: Path) -> None:
    folder_with(tmp_path, "a.jpg")
    mask = half_white(tmp_path / "a-masklabel.png")
    mask.with_suffix(".txt").write_text("a black and white picture")
    listing = list_folders([row(tmp_path)])
    assert [item.mask for item in listing.items] == [mask]
    assert listing.findings == ()


def test_without_masks_none_is_used_and_still_none_is_a_picture(tmp_path: Path) -> None:
    folder_with(tmp_path, "a.jpg")
    half_white(tmp_path / "a-masklabel.png")
    (item,) = list_folders([row(tmp_path, "none")]).items
    assert item.mask is None


def test_transparency_can_be_the_mask(tmp_path: Path) -> None:
    half_transparent(tmp_path)
    (tmp_path / "a.txt").write_text("a cup")
    (picture,) = read_folders(DatasetConfig(folders=[row(tmp_path, "alpha")], resolution=[64]), ignore)
    assert picture.mask == picture.path
    assert findings_of(row(tmp_path, "alpha")) == []


def test_a_mask_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder_with(tmp_path, "a.jpg")
    half_white(tmp_path / "a-masklabel.png", (64, 64))
    with pytest.raises(DataError, match="the mask has 64 x 64 pixels, the picture 96 x 64: another shape"):
        read_folders(DatasetConfig(folders=[row(tmp_path)], resolution=[64]), ignore)


def test_a_mask_of_another_size_but_the_same_shape_is_taken(tmp_path: Path) -> None:
    folder_with(tmp_path, "a.jpg")
    half_white(tmp_path / "a-masklabel.png", (960, 640))
    assert findings_of(row(tmp_path)) == []


def test_a_damaged_mask_is_an_error_of_its_picture(tmp_path: Path) -> None:
    folder_with(tmp_path, "a.jpg")
    (tmp_path / "a-masklabel.png").write_bytes(b"damaged")
    (finding,) = findings_of(row(tmp_path))
    assert (finding.check, finding.picture) == ("bad-mask", "a.jpg")
    assert finding.where == str(tmp_path / "a-masklabel.png")


@pytest.mark.parametrize(("brightness", "words"), [(0, "black all over"), (255, "white all over")])
def test_a_mask_that_says_nothing_is_told(tmp_path: Path, brightness: int, words: str) -> None:
    folder_with(tmp_path, "a.jpg")
    Image.new("L", (96, 64), brightness).save(tmp_path / "a-masklabel.png")
    (finding,) = findings_of(row(tmp_path))
    assert finding.check == "useless-mask" and words in finding.message


def test_a_mask_without_a_picture_is_told(tmp_path: Path) -> None:
    folder_with(tmp_path, "a.jpg")
    half_white(tmp_path / "b-masklabel.png")
    (finding,) = findings_of(row(tmp_path))
    assert finding.check == "stray-mask"


def test_a_folder_of_masks_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    folder_with(tmp_path, "a.jpg")
    (finding,) = findings_of(row(tmp_path, "gone"))
    assert (finding.check, finding.message) == ("no-folder", "there is no such folder of masks")


def test_a_mask_comes_to_its_mean_in_each_tokens_square() -> None:
    mask = Image.new("L", (64, 32), 0)
    mask.paste(255, (0, 0, 24, 32))
    grid = on_tokens(mask, 64, 32, CENTRE, 16)
    assert grid.tolist() == [[[1.0, pytest.approx(0.5, abs=0.01), 0.0, 0.0]] * 2]


def test_a_mask_is_cut_as_its_picture_is() -> None:
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    assert on_tokens(mask, 32, 32, Crop(zoom=0.5, across=1.0, down=0.0), 16).min() == 1
    assert on_tokens(mask, 32, 32, Crop(zoom=0.5, across=0.0, down=0.0), 16).max() == 0


def test_a_folder_of_masks_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_with(tmp_path / "photos", "a.jpg")
    half_white(tmp_path / "masks" / "a.png")
    scan = os.scandir

    def closed(path: str) -> object:
        if Path(path).name == "masks":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    told = [each for each in findings_of(row(tmp_path / "photos", str(tmp_path / "masks"))) if each.severity == "error"]
    assert [(each.message, each.where) for each in told] == [
        ("the masks cannot be read: permission denied", str(tmp_path / "masks"))
    ]


def test_a_folder_of_masks_without_any_is_told(tmp_path: Path) -> None:
    folder_with(tmp_path / "photos", "a.jpg")
    (tmp_path / "masks").mkdir()
    listing = list_folders([row(tmp_path / "photos", str(tmp_path / "masks"))])
    (told,) = listing.findings
    assert (told.severity, told.message) == ("warning", "there are no masks in this folder")
