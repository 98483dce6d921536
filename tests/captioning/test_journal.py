from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from fluxtune.captioning import run
from fluxtune.captioning.journal import FOLDER, undo
from fluxtune.captioning.run import EndOfReview, Proposal
from fluxtune.config.schema import Config
from fluxtune.errors import DataError, StorageError, UsageError
from fluxtune.events import Caption, Event, Warning, ignore

NAMES = ("a", "b", "c", "d")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for index, name in enumerate(NAMES):
        Image.new("RGB", (32, 32), (60 * index, 100, 50)).save(folder / f"{name}.png")
    Image.new("RGB", (32, 32), "blue").save(folder / "more" / "e.png")
    return folder


@pytest.fixture(autouse=True)
def captioner(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stands in for a model: what is tested here is what happens to its words. Holds how many it was given."""
    given: list[int] = []

    def say(images: Sequence[Image.Image]) -> list[str]:
        given.append(len(images))
        return [f"a square {len(given)}" for _ in images]

    monkeypatch.setattr("fluxtune.captioning.run.open_captioner", lambda *_: say)
    return given


def settings(folder: Path, **captioning: object) -> Config:
    return Config.model_validate(
        {
            "dataset": {"folders": [{"path": str(folder)}]},
            "captioning": {"captioner": "nano", "batch_size": 1, **captioning},
        }
    )


def texts(folder: Path) -> dict[str, str]:
    names = (file.relative_to(folder) for file in sorted(folder.rglob("*.txt")))
    return {name.as_posix(): (folder / name).read_text() for name in names if name.parts[0] != FOLDER}


def test_only_missing_and_empty_captions_are_written(photos: Path) -> None:
    (photos / "a.txt").write_text("mine")
    (photos / "b.txt").write_text("")
    outcome = run.caption(settings(photos), ignore)
    assert outcome.as_data()["kept"] == 1
    assert texts(photos)["a.txt"] == "mine"
    assert texts(photos)["b.txt"] == "a square 1\n"
    assert len(texts(photos)) == 5


def test_skip_leaves_empty_captions_alone(photos: Path) -> None:
    (photos / "b.txt").write_text("")
    run.caption(settings(photos, existing="skip"), ignore)
    assert texts(photos)["b.txt"] == ""
    assert texts(photos)["a.txt"] == "a square 1\n"


def test_a_dot_caption_file_is_written_over_where_it_stands(photos: Path) -> None:
    (photos / "a.caption").write_text("old")
    run.caption(settings(photos, existing="overwrite"), ignore)
    assert (photos / "a.caption").read_text() == "a square 1\n"
    assert not (photos / "a.txt").exists()


def test_undo_brings_every_byte_back(photos: Path) -> None:
    (photos / "a.txt").write_bytes(b"\xff\xfeno UTF-8\x00")
    (photos / "b.caption").write_bytes(b"\xef\xbb\xbfwith a mark\r\n")
    before = {file: file.read_bytes() for file in photos.rglob("*") if file.is_file()}
    run.caption(settings(photos, existing="overwrite"), ignore)
    assert (photos / "a.txt").read_text() == "a square 1\n"
    undone = undo(photos)
    assert {file: file.read_bytes() for file in photos.rglob("*") if file.is_file()} == before
    assert set(undone.restored) == {"a.txt", "b.caption"}
    assert set(undone.removed) == {"c.txt", "d.txt", "more/e.txt"}


def test_undo_goes_back_one_captioning_at_a_time(photos: Path) -> None:
    run.caption(settings(photos), ignore)
    first = texts(photos)
    run.caption(settings(photos, existing="overwrite", prefix="again"), ignore)
    assert texts(photos) != first
    undo(photos)
    assert texts(photos) == first
    undo(photos)
    assert texts(photos) == {}
    with pytest.raises(UsageError, match="no captioning to undo"):
        undo(photos)


def test_undo_leaves_what_somebody_changed_since(photos: Path) -> None:
    run.caption(settings(photos), ignore)
    (photos / "a.txt").write_text("mine now")
    undone = undo(photos)
    assert undone.changed == ("a.txt",)
    assert texts(photos) == {"a.txt": "mine now"}


def cut_off_after(number: int) -> run.Decide:
    seen = []

    def decide(proposal: Proposal) -> str:
        seen.append(proposal)
        if len(seen) > number:
            raise KeyboardInterrupt
        return proposal.caption

    return decide


def test_overwriting_that_was_cut_off_goes_on_where_it_was(photos: Path, captioner: list[int]) -> None:
    for name in NAMES:
        (photos / f"{name}.txt").write_text("old")
    config = settings(photos, existing="overwrite")
    with pytest.raises(KeyboardInterrupt):
        run.caption(config, ignore, decide=cut_off_after(2))
    assert list(texts(photos).values()).count("old") == 2
    captioner.clear()
    run.caption(config, ignore)
    assert len(captioner) == 3
    undo(photos)
    assert texts(photos) == dict.fromkeys(("a.txt", "b.txt", "c.txt", "d.txt"), "old")


def test_what_was_changed_by_hand_in_between_is_not_captioned_again(photos: Path) -> None:
    config = settings(photos, existing="overwrite")
    with pytest.raises(KeyboardInterrupt):
        run.caption(config, ignore, decide=cut_off_after(2))
    (photos / "a.txt").write_text("mended by hand")
    run.caption(config, ignore)
    assert texts(photos)["a.txt"] == "mended by hand"


def test_the_next_captioning_with_the_same_settings_starts_anew(photos: Path, captioner: list[int]) -> None:
    config = settings(photos, existing="overwrite")
    run.caption(config, ignore)
    captioner.clear()
    run.caption(config, ignore)
    assert len(captioner) == 5


def test_a_part_of_the_pictures_is_gone_on_with(photos: Path) -> None:
    config = settings(photos, existing="overwrite")
    run.caption(config, ignore, limit=2)
    assert len(texts(photos)) == 2
    run.caption(config, ignore, limit=2)
    assert len(texts(photos)) == 4


def test_a_line_that_a_kill_cut_short_counts_as_nothing(photos: Path) -> None:
    config = settings(photos, existing="overwrite")
    with pytest.raises(KeyboardInterrupt):
        run.caption(config, ignore, decide=cut_off_after(2))
    journal = photos / FOLDER / "001" / "journal.jsonl"
    journal.write_text(journal.read_text()[:-20])
    run.caption(config, ignore)
    undo(photos)
    assert texts(photos).keys() <= {"b.txt"}


def test_a_dry_run_writes_nothing_at_all(photos: Path) -> None:
    before = sorted(photos.rglob("*"))
    outcome = run.caption(settings(photos), ignore, dry_run=True)
    assert sorted(photos.rglob("*")) == before
    assert [event.caption for event in outcome.captions] == [f"a square {index}" for index in range(1, 6)]
    assert not any(event.written for event in outcome.captions)


def test_a_captioner_that_fails_leaves_nothing_behind(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise StorageError("no")

    monkeypatch.setattr("fluxtune.captioning.run.open_captioner", fail)
    before = sorted(photos.rglob("*"))
    with pytest.raises(StorageError):
        run.caption(settings(photos), ignore)
    assert sorted(photos.rglob("*")) == before


def test_a_review_that_ends_keeps_what_was_decided(photos: Path) -> None:
    answers = iter(["mine", None])

    def decide(proposal: Proposal) -> str | None:
        try:
            return next(answers)
        except StopIteration:
            raise EndOfReview from None

    outcome = run.caption(settings(photos), ignore, decide=decide)
    assert texts(photos) == {"a.txt": "mine\n"}
    assert outcome.as_data() == {"pictures": 5, "written": 1, "proposed": 0, "kept": 0, "declined": 1, "failed": 0}


def test_a_damaged_picture_is_named_and_the_others_are_captioned(photos: Path) -> None:
    (photos / "b.png").write_bytes((photos / "b.png").read_bytes()[:40])
    events: list[Event] = []
    outcome = run.caption(settings(photos), events.append)
    assert outcome.counts["failed"] == 1
    assert len([event for event in events if isinstance(event, Caption)]) == 4
    assert [event.where for event in events if event.event == "finding"] == [str(photos / "b.png")]


def test_captions_in_a_metadata_file_are_left_there(photos: Path) -> None:
    (photos / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "from the table"}) + "\n")
    events: list[Event] = []
    run.caption(settings(photos, existing="overwrite"), events.append)
    assert "a.txt" not in texts(photos)
    assert any(isinstance(event, Warning) and "no file of its own" in event.message for event in events)


def test_two_pictures_of_one_name_are_not_captioned_twice(photos: Path) -> None:
    Image.new("RGB", (32, 32)).save(photos / "a.jpg")
    events: list[Event] = []
    run.caption(settings(photos), events.append)
    assert any(isinstance(event, Warning) and "same caption file" in event.message for event in events)
    assert len(texts(photos)) == 5


def test_wording_anew_asks_no_captioner_and_can_be_undone(photos: Path, captioner: list[int]) -> None:
    (photos / "a.txt").write_text("a dog on a lawn")
    config = settings(photos, prefix="photo of")
    outcome = run.reword(config, ignore)
    assert captioner == []
    assert texts(photos) == {"a.txt": "photo of a dog on a lawn\n"}
    assert outcome.counts["written"] == 1
    undo(photos)
    assert texts(photos) == {"a.txt": "a dog on a lawn"}


def test_a_folder_that_is_not_there_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        run.caption(settings(tmp_path / "none"), ignore)


def test_regularization_pictures_get_captions_without_the_trigger(photos: Path) -> None:
    regular = photos.parent / "regular"
    (photos / "more").rename(regular)
    folders = [{"path": str(photos)}, {"path": str(regular), "kind": "regularization"}]
    config = Config.model_validate(
        {"dataset": {"folders": folders, "trigger": "zorvex"}, "captioning": {"captioner": "nano"}}
    )
    run.caption(config, ignore)
    assert texts(regular)["e.txt"].startswith("a square")
    assert texts(photos)["a.txt"].startswith("zorvex, a square")


@pytest.mark.parametrize("name", ["../victim.txt", "more/../../victim.txt", "/ABSOLUTE"])
def test_undo_touches_nothing_outside_of_the_folder_whatever_the_journal_says(photos: Path, name: str) -> None:
    victim = photos.parent / "victim.txt"
    victim.write_text("a square 1\n")
    run.caption(settings(photos), ignore)
    journal = photos / FOLDER / "001" / "journal.jsonl"
    line = json.loads(journal.read_text().splitlines()[0])
    line["file"] = name.replace("/ABSOLUTE", str(victim))
    journal.write_text(journal.read_text() + json.dumps(line) + "\n")
    undo(photos)
    assert victim.read_text() == "a square 1\n"
    assert texts(photos) == {}


def test_a_caption_that_cannot_be_read_and_stays_counts_as_failed(photos: Path) -> None:
    (photos / "a.txt").write_bytes(b"\xff\xfe")
    assert run.caption(settings(photos), ignore).as_data()["failed"] == 1
    assert run.caption(settings(photos), ignore).as_data() == {
        "pictures": 5, "written": 0, "proposed": 0, "kept": 4, "declined": 0, "failed": 1,
    }  # fmt: skip
    assert run.caption(settings(photos, existing="overwrite"), ignore).counts["failed"] == 0


def test_proposals_are_counted(photos: Path) -> None:
    (photos / "a.txt").write_text("mine")
    seen: list[tuple[int, int]] = []

    def decide(proposal: Proposal) -> str:
        seen.append((proposal.number, proposal.total))
        return proposal.caption

    (photos / "b.png").write_bytes(b"no picture")
    run.caption(settings(photos), ignore, decide)
    assert seen == [(2, 4), (3, 4), (4, 4)]


def test_a_captioner_that_says_nothing_writes_nothing(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxtune.captioning.run.open_captioner", lambda *_: lambda images: ["  \n" for _ in images])
    (photos / "a.txt").write_text("mine")
    events: list[Event] = []
    outcome = run.caption(settings(photos, existing="overwrite", prefix="photo of"), events.append)
    assert texts(photos) == {"a.txt": "mine"}
    assert outcome.counts["failed"] == 5
    assert any(event.event == "finding" and "said nothing" in event.message for event in events)
