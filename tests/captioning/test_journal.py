from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from squares import NAMES, cut_off_after, settings, settings_of_rows, texts

from fluxtune.captioning import run
from fluxtune.captioning.journal import FOLDER, Journals
from fluxtune.captioning.undo import undo
from fluxtune.captioning.writing import EndOfReview, Proposal
from fluxtune.config.schema import Config
from fluxtune.dataset.folder import Item
from fluxtune.errors import DataError, StorageError, UsageError
from fluxtune.events import Caption, Event, Warning, ignore

pytestmark = pytest.mark.usefixtures("captioner")


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
    assert outcome.as_data() == {
        "pictures": 5,
        "written": 1,
        "proposed": 0,
        "kept": 0,
        "declined": 1,
        "failed": 0,
        "waiting": 3,
    }


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


def test_a_caption_that_cannot_be_read_and_stays_counts_as_failed(photos: Path) -> None:
    (photos / "a.txt").write_bytes(b"\xff\xfe")
    assert run.caption(settings(photos), ignore).as_data()["failed"] == 1
    assert run.caption(settings(photos), ignore).as_data() == {
        "pictures": 5, "written": 0, "proposed": 0, "kept": 4, "declined": 0, "failed": 1, "waiting": 0,
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


def test_two_processes_do_not_caption_one_folder_at_once(photos: Path, captioner: list[int]) -> None:
    config = settings(photos)

    def decide(proposal: Proposal) -> str:
        with pytest.raises(StorageError, match="being written by process"):
            run.caption(config, ignore)
        return proposal.caption

    run.caption(config, ignore, decide=decide)
    assert len(texts(photos)) == 5


def test_a_folder_by_two_names_is_captioned_once(photos: Path, captioner: list[int]) -> None:
    (photos.parent / "link").symlink_to(photos)
    for name in NAMES:
        (photos / f"{name}.txt").write_text("old")
    rows = [{"path": str(photos)}, {"path": str(photos.parent / "link")}, {"path": str(photos / "more")}]
    events: list[Event] = []
    run.caption(settings_of_rows(*rows, existing="overwrite"), events.append)
    assert len(captioner) == 5
    assert not any(isinstance(event, Warning) for event in events)
    undo(photos)
    assert texts(photos) == {f"{name}.txt": "old" for name in NAMES}


def test_a_caption_that_somebody_writes_meanwhile_is_left_as_it_is(photos: Path) -> None:
    def decide(proposal: Proposal) -> str:
        (photos / "b.txt").write_text("by hand")
        return proposal.caption

    events: list[Event] = []
    outcome = run.caption(settings(photos), events.append, decide=decide)
    assert texts(photos)["b.txt"] == "by hand"
    assert outcome.counts["kept"] == 1
    assert any(isinstance(event, Warning) and "meanwhile" in event.message for event in events)


def test_a_file_that_the_settings_do_not_take_for_a_caption_is_kept_all_the_same(photos: Path) -> None:
    (photos / "a.txt").write_text("mine")
    run.caption(settings_of_rows({"path": str(photos), "captions": "none"}), ignore)
    assert texts(photos)["a.txt"] == "mine"


def test_captions_are_never_written_over_pictures(photos: Path) -> None:
    config = settings_of_rows({"path": str(photos), "captions": ".png"}, existing="overwrite")
    with pytest.raises(UsageError, match="over pictures"):
        run.caption(config, ignore)


def test_a_line_cut_short_does_not_take_the_next_one_with_it(photos: Path) -> None:
    for name in NAMES:
        (photos / f"{name}.txt").write_text("old")
    config = settings(photos, existing="overwrite")
    with pytest.raises(KeyboardInterrupt):
        run.caption(config, ignore, decide=cut_off_after(2))
    journal = photos / FOLDER / "001" / "journal.jsonl"
    journal.write_text(journal.read_text() + '{"file": "c.t')
    run.caption(config, ignore)
    undo(photos)
    assert texts(photos) == {f"{name}.txt": "old" for name in NAMES}


def test_one_caption_that_cannot_be_written_leaves_the_others_to_be_written(photos: Path) -> None:
    (photos / "b.txt").mkdir()
    events: list[Event] = []
    outcome = run.caption(settings(photos), events.append)
    assert outcome.counts["failed"] == 1
    assert outcome.counts["written"] == 4
    assert [event.where for event in events if event.event == "finding"] == [str(photos / "b.txt")]


def test_a_name_as_long_as_the_system_takes_can_be_captioned(photos: Path) -> None:
    name = "n" * 251
    (photos / "a.png").rename(photos / f"{name}.png")
    run.caption(settings(photos, existing="overwrite"), ignore)
    run.caption(settings(photos, existing="overwrite", prefix="again"), ignore)
    assert texts(photos)[f"{name}.txt"].startswith("again")
    undo(photos)
    assert texts(photos)[f"{name}.txt"].startswith("a square")


def test_rewording_that_is_gone_on_with_leaves_what_was_changed_since(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (photos / f"{name}.txt").write_text("a dog")
    config = settings(photos, prefix="photo of")
    write = Journals.write

    def cut_off(journals: Journals, item: Item, caption: str) -> bool:
        if item.path.stem == "b":
            raise KeyboardInterrupt
        return write(journals, item, caption)

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(Journals, "write", cut_off)
        run.reword(config, ignore)
    (photos / "a.txt").write_text("by hand")
    run.reword(config, ignore)
    assert texts(photos) == {"a.txt": "by hand", "b.txt": "photo of a dog\n"}


def test_nothing_is_written_to_where_nothing_is_to_be_captioned(photos: Path) -> None:
    run.caption(settings(photos), ignore)
    undo_folder = sorted((photos / FOLDER).rglob("*"))
    run.caption(settings(photos), ignore)
    assert sorted((photos / FOLDER).rglob("*")) == undo_folder
