"""Sittings that were killed, seams between processes, and folders that cannot be written to."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from squares import cut_off_after, settings, settings_of_rows, texts

from fluxtune.captioning import journal, run
from fluxtune.captioning.journal import FOLDER, Journals
from fluxtune.captioning.undo import undo
from fluxtune.errors import StorageError
from fluxtune.events import ignore
from fluxtune.files import partial_of

pytestmark = pytest.mark.usefixtures("captioner")


def killed_before_its_first_caption(photos: Path, number: str) -> None:
    (photos / FOLDER / number).mkdir(parents=True)
    (photos / FOLDER / number / "session.json").write_text("{}")


def test_undo_passes_over_a_sitting_that_was_killed_before_its_first_caption(photos: Path) -> None:
    run.caption(settings(photos), ignore)
    killed_before_its_first_caption(photos, "002")
    undone = undo(photos)
    assert undone is not None
    assert len(undone.removed) == 5
    assert undo(photos) is None


def test_a_sitting_is_gone_on_with_behind_one_that_was_killed_before_its_first_caption(photos: Path) -> None:
    config = settings(photos, existing="overwrite")
    with pytest.raises(KeyboardInterrupt):
        run.caption(config, ignore, cut_off_after(2))
    killed_before_its_first_caption(photos, "002")
    assert run.caption(config, ignore).counts["written"] == 3


def test_what_was_killed_before_its_first_caption_is_cleared_away(photos: Path) -> None:
    killed_before_its_first_caption(photos, "001")
    (photos / FOLDER / "002").mkdir()
    (photos / FOLDER / "002" / ".0123abcd.7.partial").touch()
    (photos / FOLDER / ".003.partial" / "before").mkdir(parents=True)
    run.caption(settings(photos), ignore)
    assert len(list((photos / FOLDER).iterdir())) == 1
    undo(photos)
    assert not (photos / FOLDER).exists()


def test_a_half_made_copy_of_a_kill_is_no_old_caption(photos: Path) -> None:
    (photos / "a.txt").write_text("first")
    run.caption(settings(photos, existing="overwrite"), ignore)
    (photos / FOLDER / "001" / "before" / ".0123abcd.7.partial").write_text("fir")
    undone = undo(photos)
    assert undone is not None
    assert (undone.changed, undone.old) == ([], None)
    assert texts(photos) == {"a.txt": "first"}


def left_by_a_kill(file: Path) -> Path:
    """A new caption under the temporary name of a process that is gone."""
    left = partial_of(file)
    left = left.with_name(left.name.replace(str(os.getpid()), "7"))
    left.write_text("half of a ca")
    return left


def test_what_a_kill_left_beside_the_pictures_goes_when_it_is_gone_on(photos: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run.caption(settings(photos), ignore, cut_off_after(2))
    left, of_others = left_by_a_kill(photos / "b.txt"), left_by_a_kill(photos / "b.png")
    run.caption(settings(photos), ignore)
    assert not left.exists()
    assert of_others.exists()


def test_what_a_killed_undo_left_goes_with_the_next(photos: Path) -> None:
    run.caption(settings(photos), ignore)
    left = left_by_a_kill(photos / "more" / "e.txt")
    undo(photos)
    assert not left.exists()


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_to_a_name_that_is_no_utf8_comes_back(photos: Path, is_there: bool) -> None:
    target = os.fsdecode(b"../caf\xe9.txt")
    if is_there:
        (photos / target).write_text("of many")
    (photos / "a.txt").symlink_to(target)
    run.caption(settings(photos, existing="overwrite"), ignore)
    assert not (photos / "a.txt").is_symlink()
    assert undo(photos) is not None
    assert os.readlink(photos / "a.txt") == target


@pytest.mark.parametrize("change", [{"file": "a\0.txt"}, {"file": "\ud800.txt"}, {"link": 5}, {"before": [1]}])
def test_lines_of_a_journal_that_say_nothing_sensible_are_passed_over(photos: Path, change: dict[str, object]) -> None:
    run.caption(settings(photos), ignore)
    lines = photos / FOLDER / "001" / "journal.jsonl"
    first = json.loads(lines.read_text().splitlines()[0])
    lines.write_text(lines.read_text() + json.dumps({**first, **change}) + "\n")
    undone = undo(photos)
    assert undone is not None
    assert not undone.failed
    assert texts(photos) == {}


def test_a_folder_in_which_nothing_is_to_be_written_may_be_read_only(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "more" / "e.txt").write_text("a person")
    mkdir = Path.mkdir

    def refuse(path: Path, *arguments: object, **options: bool) -> None:
        if path.is_relative_to(photos / "more"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        mkdir(path, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    rows = {"path": str(photos)}, {"path": str(photos / "more"), "kind": "regularization"}
    assert run.caption(settings_of_rows(*rows), ignore).counts["written"] == 4
    (photos / "more" / "e.txt").unlink()
    with pytest.raises(StorageError, match="read-only"):
        run.caption(settings_of_rows({"path": str(photos / "more")}), ignore)


def meanwhile(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> None:
    """Another process does its work just before this one has the folders to itself."""
    held = Journals.held

    def later(self: Journals, *arguments: object) -> AbstractContextManager[None]:
        monkeypatch.setattr(Journals, "held", held)
        work()
        return held(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Journals, "held", later)


def test_a_caption_written_while_the_folder_was_looked_at_is_kept(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "b.txt").touch()
    meanwhile(monkeypatch, lambda: [(photos / name).write_text("mine") for name in ("a.txt", "b.txt")])
    outcome = run.caption(settings(photos), ignore)
    assert (photos / "a.txt").read_text() == (photos / "b.txt").read_text() == "mine"
    assert outcome.counts["kept"] == 2


def test_rewording_at_once_in_two_processes_loses_no_words(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "a.txt").write_text("a dog")
    meanwhile(monkeypatch, lambda: run.reword(settings(photos, suffix="outdoors"), ignore))
    run.reword(settings(photos, prefix="photo of"), ignore)
    assert (photos / "a.txt").read_text() == "photo of a dog outdoors\n"


def test_a_folder_that_another_process_just_took_away_is_made_again(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = journal.held

    def later(lock: Path, what: str) -> AbstractContextManager[None]:
        monkeypatch.setattr(journal, "held", held)
        lock.parent.rmdir()
        return held(lock, what)

    monkeypatch.setattr(journal, "held", later)
    assert run.caption(settings(photos), ignore).counts["written"] == 5
