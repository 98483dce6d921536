"""The captions that a run trains with: asked for where there are none, recorded, and taken up again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import pytest
from tiny_runs import Trained, plain_config, small_pictures, stop_after, train_in

from fluxtune.captioning.missing import caption_bare
from fluxtune.config.schema import Config
from fluxtune.dataset.folder import Item
from fluxtune.dataset.survey import Look
from fluxtune.errors import BaseModelError, DataError, Stopped
from fluxtune.events import Phase, Sink
from fluxtune.nano.painter import paint
from fluxtune.nano.scenes import subject_scene
from fluxtune.runs import Run


@pytest.fixture
def bare_pictures(tmp_path: Path) -> Path:
    """Three pictures, the last two without a caption."""
    folder = small_pictures(tmp_path / "photos")
    for index in (1, 2):
        (folder / f"{index}.txt").unlink()
    return folder


def config_for(base: Path, pictures: Path, **changes: object) -> Config:
    wanted = {"dataset__missing_captions": "caption", "training__steps": 2, "captioning": {"captioner": "nano"}}
    return plain_config(base, pictures, **wanted, **changes)


def never(config: Config, on_event: Sink, pictures: Sequence[tuple[Item, Look]]) -> NoReturn:
    pytest.fail(f"the captioner was asked for {[item.name for item, _ in pictures]}")


def by_name(config: Config, on_event: Sink, pictures: Sequence[tuple[Item, Look]]) -> Mapping[str, str]:
    """A captioner that says what a picture's file is called."""
    return {item.name: f"picture {item.path.stem}" for item, _ in pictures}


def captions_in(run: Path) -> list[tuple[str, str, str]]:
    """The captions that a run trains with now."""
    rows = [json.loads(line) for line in (run / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    start = max((number + 1 for number, row in enumerate(rows) if "from_step" in row), default=0)
    return [(row["picture"], row["caption"], row["source"]) for row in rows[start:]]


def test_a_run_records_its_captions_and_where_each_came_from(
    tiny_flux: Path, bare_pictures: Path, tmp_path: Path
) -> None:
    run = train_in(
        tmp_path / "mug", config_for(tiny_flux, bare_pictures), cache=tmp_path / "cache", caption_bare=by_name
    )
    assert captions_in(run.folder) == [
        ("0.png", "a zorvex in place 0", str(bare_pictures / "0.txt")),
        ("1.png", "zorvex, picture 1", "captioning.captioner"),
        ("2.png", "zorvex, picture 2", "captioning.captioner"),
    ]


def test_captions_by_the_trigger_alone_are_recorded_as_such(
    tiny_flux: Path, bare_pictures: Path, tmp_path: Path
) -> None:
    config = plain_config(tiny_flux, bare_pictures, dataset__missing_captions="trigger", training__steps=1)
    run = train_in(tmp_path / "mug", config, cache=tmp_path / "cache")
    assert captions_in(run.folder)[1:] == [(f"{index}.png", "zorvex", "dataset.trigger") for index in (1, 2)]


def test_captioning_is_in_the_runs_record_at_the_time_when_it_was_done(
    tiny_flux: Path, bare_pictures: Path, tmp_path: Path
) -> None:
    done: list[datetime] = []

    def ask(config: Config, on_event: Sink, pictures: Sequence[tuple[Item, Look]]) -> Mapping[str, str]:
        captions = caption_bare(config, on_event, pictures)
        done.append(datetime.now(UTC))
        return captions

    for index in (1, 2):
        paint(subject_scene(4, index)).save(bare_pictures / f"{index}.png")
    config = config_for(tiny_flux, bare_pictures)
    run = train_in(tmp_path / "mug", config, cache=tmp_path / "cache", caption_bare=ask)
    record = run.record()
    assert [line["event"] for line in record] == [event.event for event in run.events]
    (phase,) = [line for line in record if line.get("name") == "caption pictures"]
    assert phase["detail"] == "2 new, 0 from the cache"
    progress = [line for line in record if line.get("task") == "caption"]
    assert [line["done"] for line in progress] == [1, 2]
    assert datetime.fromisoformat(progress[-1]["time"]) <= done[0]


@pytest.fixture
def stopped(tiny_flux: Path, bare_pictures: Path, tmp_path: Path) -> Path:
    """A run that was stopped after the first of its two steps."""
    config = config_for(tiny_flux, bare_pictures)
    with pytest.raises(Stopped):
        train_in(tmp_path / "mug", config, cache=tmp_path / "cache", caption_bare=by_name, should_stop=stop_after(1))
    return tmp_path / "mug"


def resumed(run: Path, tiny_flux: Path, pictures: Path, ask: object) -> Trained:
    """With an empty cache."""
    config = config_for(tiny_flux, pictures)
    options = {"resume": run, "caption_bare": ask, "accept": {"changed-data"}}
    return train_in(run, config, cache=run.with_name("other cache"), **options)


@pytest.mark.parametrize("ask", [never, None])
def test_a_resumed_run_trains_with_the_captions_that_it_began_with(
    stopped: Path, tiny_flux: Path, bare_pictures: Path, ask: object
) -> None:
    before = (stopped / "captions.jsonl").read_bytes()
    again = resumed(stopped, tiny_flux, bare_pictures, ask)
    assert (stopped / "captions.jsonl").read_bytes() == before
    details = [event.detail for event in again.seen(Phase) if event.name == "caption pictures"]
    assert details == ["2 as this run recorded them"]


def test_a_resumed_run_asks_for_captions_of_new_pictures_only_and_adds_them(
    stopped: Path, tiny_flux: Path, bare_pictures: Path
) -> None:
    before = captions_in(stopped)
    (bare_pictures / "2.png").unlink()
    paint(subject_scene(4, 3)).save(bare_pictures / "3.png")
    resumed(stopped, tiny_flux, bare_pictures, by_name)
    assert captions_in(stopped) == [*before[:2], ("3.png", "zorvex, picture 3", "captioning.captioner")]


def test_a_caption_that_changed_since_is_recorded_behind_those_of_before(
    stopped: Path, tiny_flux: Path, bare_pictures: Path
) -> None:
    before = captions_in(stopped)
    (bare_pictures / "0.txt").write_text("a zorvex")
    resumed(stopped, tiny_flux, bare_pictures, never)
    assert captions_in(stopped) == [("0.png", "a zorvex", str(bare_pictures / "0.txt")), *before[1:]]
    rows = [json.loads(line) for line in (stopped / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["caption"] for row in rows[:3]] == [caption for _, caption, _ in before]
    assert rows[3] == {"from_step": 1}


def test_a_damaged_record_of_captions_is_made_up_for(stopped: Path, tiny_flux: Path, bare_pictures: Path) -> None:
    before = captions_in(stopped)
    lines = (stopped / "captions.jsonl").read_bytes().splitlines()
    (stopped / "captions.jsonl").write_bytes(b"\n".join([*lines[:2], b'{"picture": [], "caption": 3}', lines[2][:9]]))
    resumed(stopped, tiny_flux, bare_pictures, by_name)
    assert captions_in(stopped) == before


def test_pictures_without_a_caption_are_refused_where_nobody_captions(
    tiny_flux: Path, bare_pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="2 of 3 pictures without a caption"):
        train_in(tmp_path / "mug", config_for(tiny_flux, bare_pictures), cache=tmp_path / "cache")


def test_a_base_model_that_is_not_there_is_told_before_a_captioner_is_asked(
    tiny_flux: Path, bare_pictures: Path, tmp_path: Path
) -> None:
    config = config_for(tmp_path / "gone", bare_pictures)
    with pytest.raises(BaseModelError):
        train_in(tmp_path / "mug", config, cache=tmp_path / "cache", caption_bare=never)


def test_what_was_accepted_is_accepted_when_the_run_goes_on(
    tiny_flux: Path, bare_pictures: Path, tmp_path: Path
) -> None:
    (bare_pictures / "1.png").write_bytes(b"damaged")
    config = config_for(tiny_flux, bare_pictures)
    run = tmp_path / "mug"
    options = {"cache": tmp_path / "cache", "caption_bare": by_name}
    with pytest.raises(Stopped):
        train_in(run, config, accept={"data"}, should_stop=stop_after(1), **options)
    assert Run.open(run).state.accepted == ["data"]
    assert train_in(run, config, resume=run, **options).file.is_file()


def test_what_is_accepted_first_when_a_run_goes_on_is_recorded_too(
    stopped: Path, tiny_flux: Path, bare_pictures: Path
) -> None:
    (bare_pictures / "1.png").write_bytes(b"damaged")
    config = config_for(tiny_flux, bare_pictures)
    train_in(stopped, config, cache=stopped.with_name("cache"), resume=stopped, accept={"data", "changed-data"})
    assert Run.open(stopped).state.accepted == ["data"]
