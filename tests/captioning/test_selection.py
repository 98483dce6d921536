"""Which pictures are captioned, and where the captions go, by what the row of their folder says."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from fluxtune.captioning.selection import all_pictures, caption_file, to_caption
from fluxtune.config.schema import Config
from fluxtune.events import ignore


def pictures_of(folder: Path, **row: object) -> Config:
    """Settings with one picture in one folder."""
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    return Config.model_validate({"dataset": {"folders": [{"path": str(folder), **row}]}})


def test_a_caption_gets_the_ending_that_its_folder_is_read_with(tmp_path: Path) -> None:
    (item,) = all_pictures(pictures_of(tmp_path, captions=".caption"), ignore)
    assert caption_file(item) == tmp_path / "a.caption"


def test_a_picture_with_the_default_caption_of_its_folder_is_captioned(tmp_path: Path) -> None:
    items = all_pictures(pictures_of(tmp_path, default_caption="a dog"), ignore)
    assert [item.caption for item in items] == ["a dog"]
    assert list(to_caption(items, "skip", ignore)) == items
