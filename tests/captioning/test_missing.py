from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from fluxtune.captioning.missing import caption_bare
from fluxtune.config.schema import Config
from fluxtune.dataset.pictures import Picture, read_folders
from fluxtune.errors import DataError
from fluxtune.events import Event, Phase, ignore
from fluxtune.nano.painter import paint
from fluxtune.nano.scenes import subject_scene


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLUXTUNE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        paint(subject_scene(4, index)).save(folder / f"{index}.png")
    return folder


def settings(folder: Path, **dataset: object) -> Config:
    return Config.model_validate(
        {
            "dataset": {
                "folders": [{"path": str(folder)}],
                "trigger": "zorvex",
                "class_word": "critter",
                "missing_captions": "caption",
                **dataset,
            },
            "captioning": {"captioner": "nano"},
        }
    )


def read(config: Config, events: list[Event] | None = None) -> list[Picture]:
    report = ignore if events is None else events.append
    return read_folders(config.dataset, ignore, caption_bare=partial(caption_bare, config, report))


def test_bare_pictures_are_trained_on_with_what_the_captioner_says(photos: Path) -> None:
    (photos / "1.txt").write_text("mine, a zorvex")
    pictures = read(settings(photos))
    assert pictures[1].caption == "mine, a zorvex"
    for index in (0, 2):
        background = subject_scene(4, index).background
        assert "zorvex" in pictures[index].caption.split()
        assert pictures[index].caption.endswith(f"{background.kind} {background.colour} background")


def test_nothing_is_written_beside_the_pictures(photos: Path) -> None:
    read(settings(photos))
    assert sorted(path.name for path in photos.iterdir()) == ["0.png", "1.png", "2.png"]


def test_a_captioner_is_asked_once_for_each_picture(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read(settings(photos))
    monkeypatch.setattr("fluxtune.captioning.missing.open_captioner", None)
    events: list[Event] = []
    assert read(settings(photos), events) == first
    assert [event.detail for event in events if isinstance(event, Phase)] == ["0 new, 3 from the cache"]


def test_another_trigger_words_anew_what_was_said(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read(settings(photos))
    monkeypatch.setattr("fluxtune.captioning.missing.open_captioner", None)
    again = read(settings(photos, trigger="ohwx"))
    assert [picture.caption for picture in again] == [
        picture.caption.replace("a zorvex", "an ohwx").replace("zorvex", "ohwx") for picture in first
    ]


def test_a_picture_that_changed_is_captioned_anew(photos: Path) -> None:
    read(settings(photos))
    paint(subject_scene(4, 7)).save(photos / "0.png")
    events: list[Event] = []
    read(settings(photos), events)
    assert next(event.detail for event in events if isinstance(event, Phase)) == "1 new, 2 from the cache"


def test_without_a_captioner_bare_pictures_are_refused(photos: Path) -> None:
    with pytest.raises(DataError, match="3 of 3 pictures without a caption"):
        read_folders(settings(photos).dataset, ignore)
