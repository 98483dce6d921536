"""Captions that are there already, worded anew: which files are written, and what of them stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from fluxtune.captioning import run
from fluxtune.captioning.undo import undo
from fluxtune.config.schema import Config
from fluxtune.events import Event, ignore

CAPTIONS = {"a": "a dog", "b": "a cat", "c": "photo of a mug"}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name, caption in CAPTIONS.items():
        Image.new("RGB", (32, 32)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(caption)
    return tmp_path


def settings(folder: Path, row: dict[str, object] | None = None, **captioning: object) -> Config:
    rows = [{"path": str(folder), **(row or {})}]
    return Config.model_validate({"dataset": {"folders": rows}, "captioning": {"prefix": "photo of", **captioning}})


def files(folder: Path) -> dict[str, str]:
    return {file.name: file.read_bytes().decode() for file in sorted(folder.glob("*.txt"))}


def test_rewording_again_writes_nothing(photos: Path) -> None:
    assert run.reword(settings(photos), ignore).counts["written"] == 2
    before = {path: path.stat().st_mtime_ns for path in photos.rglob("*")}
    assert run.reword(settings(photos), ignore).as_data()["kept"] == 3
    assert {path: path.stat().st_mtime_ns for path in photos.rglob("*")} == before


def test_only_so_many_captions_are_reworded_as_asked(photos: Path) -> None:
    outcome = run.reword(settings(photos), ignore, limit=1)
    assert files(photos) == {"a.txt": "photo of a dog\n", "b.txt": "a cat", "c.txt": "photo of a mug"}
    assert outcome.as_data() == {
        "pictures": 3,
        "written": 1,
        "proposed": 0,
        "kept": 1,
        "declined": 0,
        "failed": 0,
        "waiting": 1,
    }


def test_rewording_goes_on_behind_a_limit_and_is_undone_as_one(photos: Path) -> None:
    run.reword(settings(photos), ignore, limit=1)
    run.reword(settings(photos), ignore, limit=1)
    assert files(photos)["b.txt"] == "photo of a cat\n"
    undo(photos)
    assert files(photos) == {f"{name}.txt": caption for name, caption in CAPTIONS.items()}


def test_where_the_first_line_counts_the_others_stay(photos: Path) -> None:
    (photos / "a.txt").write_bytes(b"\r\na dog\r\nsecond line\r\n")
    config = settings(photos, {"caption_lines": "first"})
    outcome = run.reword(config, ignore)
    assert files(photos)["a.txt"] == "\r\nphoto of a dog\r\nsecond line\r\n"
    assert [event.caption for event in outcome.captions] == ["photo of a dog", "photo of a cat"]
    assert run.reword(config, ignore).counts["written"] == 0


def test_a_file_that_two_pictures_share_is_reworded_once(photos: Path) -> None:
    Image.new("RGB", (32, 32)).save(photos / "a.jpg")
    outcome = run.reword(settings(photos), ignore, dry_run=True)
    assert [Path(event.file).name for event in outcome.captions] == ["a.txt", "b.txt"]


def test_a_caption_that_cannot_be_read_counts_as_failed(photos: Path) -> None:
    (photos / "b.txt").write_bytes(b"\xff\xfe")
    events: list[Event] = []
    outcome = run.reword(settings(photos), events.append)
    assert outcome.as_data() == {
        "pictures": 3,
        "written": 1,
        "proposed": 0,
        "kept": 1,
        "declined": 0,
        "failed": 1,
        "waiting": 0,
    }
    assert any(event.event == "finding" and event.check == "bad-caption" for event in events)


def test_captions_around_which_the_folder_puts_words_are_reworded_without_them(photos: Path) -> None:
    run.reword(settings(photos, {"caption_prefix": "a picture:"}), ignore)
    assert files(photos)["a.txt"] == "photo of a dog\n"
