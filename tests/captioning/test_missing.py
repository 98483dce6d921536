from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
from PIL import Image

from fluxtune.captioning.missing import caption_bare
from fluxtune.config.schema import Config
from fluxtune.dataset.pictures import Picture, read_folders
from fluxtune.errors import DataError, UsageError
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


def details(events: list[Event]) -> list[str]:
    """How many pictures were new, each time that captions were wanted."""
    return [event.detail for event in events if isinstance(event, Phase) and event.name == "caption pictures"]


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
    assert details(events) == ["0 new, 3 from the cache"]


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
    assert details(events) == ["1 new, 2 from the cache"]


def test_without_a_captioner_bare_pictures_are_refused(photos: Path) -> None:
    with pytest.raises(DataError, match="3 of 3 pictures without a caption") as caught:
        read_folders(settings(photos).dataset, ignore)
    assert caught.value.hint is not None and "missing_captions" not in caught.value.hint


def says(monkeypatch: pytest.MonkeyPatch, texts: Callable[[Image.Image], str]) -> None:
    """The captioner says what ``texts`` gives for a picture."""
    monkeypatch.setattr(
        "fluxtune.captioning.missing.open_captioner", lambda *_: lambda images: [texts(image) for image in images]
    )


def test_pictures_of_which_the_captioner_says_nothing_are_refused_by_name(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter(["a critter", " \n", ""])
    says(monkeypatch, lambda _: next(said))
    with pytest.raises(DataError, match="2 problems in the data set") as caught:
        read(settings(photos))
    for name in ("1.png", "2.png"):
        assert f"{photos / name}: the captioner said nothing" in caught.value.message
    assert caught.value.hint == "ask it otherwise (captioning.prompt), choose another captioner, or write the caption"


def test_a_captioner_that_said_nothing_is_asked_again(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "1.png").unlink()
    (photos / "2.png").unlink()
    says(monkeypatch, lambda _: "")
    with pytest.raises(DataError, match="the captioner said nothing"):
        read(settings(photos))
    says(monkeypatch, lambda _: "a critter")
    assert [picture.caption for picture in read(settings(photos))] == ["a zorvex"]


def test_what_it_said_of_the_others_is_kept(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter(["", "a critter", "a critter"])
    says(monkeypatch, lambda _: next(said))
    with pytest.raises(DataError, match="the captioner said nothing"):
        read(settings(photos))
    says(monkeypatch, lambda _: "a critter")
    events: list[Event] = []
    read(settings(photos), events)
    assert details(events) == ["1 new, 2 from the cache"]


def never(pictures: object) -> NoReturn:
    pytest.fail("the captioner was asked")


def test_what_is_fatal_is_refused_before_a_captioner_is_asked(photos: Path) -> None:
    (photos / "1.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match="the content is no PNG"):
        read_folders(settings(photos).dataset, ignore, caption_bare=never)


def test_a_damaged_picture_without_a_caption_is_told_once(photos: Path) -> None:
    (photos / "1.png").write_bytes(b"damaged")
    for index in (0, 2):
        (photos / f"{index}.txt").write_text("a zorvex")
    with pytest.raises(DataError) as caught:
        read_folders(settings(photos, missing_captions="error").dataset, ignore)
    assert caught.value.where == str(photos / "1.png")


def test_with_accepted_errors_damaged_pictures_are_left_out_and_the_others_captioned(photos: Path) -> None:
    (photos / "1.png").write_bytes(b"damaged")
    config = settings(photos)
    events: list[Event] = []
    pictures = read_folders(
        config.dataset, ignore, accept_errors=True, caption_bare=partial(caption_bare, config, events.append)
    )
    assert [picture.name for picture in pictures] == ["0.png", "2.png"]
    assert details(events) == ["2 new, 0 from the cache"]


def test_a_template_that_cannot_be_used_is_told_before_a_captioner_is_looked_for(photos: Path) -> None:
    config = settings(photos)
    unusable = config.captioning.model_copy(update={"template": "{subject}", "captioner": "no/such"})
    with pytest.raises(UsageError, match="no placeholder"):
        read(config.model_copy(update={"captioning": unusable}))


@pytest.mark.parametrize(("precision", "asked"), [("fp32", "0 new, 3 from the cache"), ("bf16", "3 new, 0 from")])
def test_what_was_said_in_one_precision_does_not_count_in_another(photos: Path, precision: str, asked: str) -> None:
    config = settings(photos)
    config = config.model_copy(update={"captioning": config.captioning.model_copy(update={"device": "cpu"})})
    read(config)  # "auto", which is fp32 on a processor
    held = config.captioning.model_copy(update={"precision": precision})
    events: list[Event] = []
    read(config.model_copy(update={"captioning": held}), events)
    assert details(events)[0].startswith(asked)


def test_a_damaged_file_of_captions_costs_no_more_than_what_was_damaged(photos: Path) -> None:
    first = read(settings(photos))
    (kept,) = (photos.parent / "cache" / "captions").iterdir()
    lines = kept.read_bytes().splitlines()
    empty = json.dumps({**json.loads(lines[2]), "text": ""}).encode()
    kept.write_bytes(b"\n".join([lines[0], b"\xff\xfe", b"[1]", b'{"picture": 1}', empty, lines[1][:-9]]))
    events: list[Event] = []
    assert read(settings(photos), events) == first
    assert read(settings(photos), events) == first
    assert details(events) == ["2 new, 1 from the cache", "0 new, 3 from the cache"]


@pytest.mark.parametrize("kinds", [("train", "regularization"), ("regularization", "train")])
def test_a_folder_that_counts_for_the_subject_and_for_its_class_is_worded_for_each(
    photos: Path, kinds: tuple[str, str]
) -> None:
    rows = [{"path": str(photos), "kind": kind} for kind in kinds]
    for picture in read(settings(photos, folders=rows)):
        assert ("zorvex" in picture.caption.split()) == picture.is_subject
        assert ("critter" in picture.caption.split()) != picture.is_subject


def test_a_captioned_picture_gets_what_its_folder_puts_around_captions(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "0.txt").write_text("a critter")
    says(monkeypatch, lambda _: "a critter")
    rows = [{"path": str(photos), "caption_prefix": "night,", "caption_suffix": "[trigger]"}]
    captions = [picture.caption for picture in read(settings(photos, folders=rows, trigger=None))]
    assert captions == ["night, a critter [trigger]"] * 3
