from __future__ import annotations

import json
from pathlib import Path

import pytest
from squares import settings, settings_of_rows, texts

from fluxtune.captioning import run
from fluxtune.captioning.journal import FOLDER, held_folder
from fluxtune.captioning.undo import undo
from fluxtune.errors import StorageError
from fluxtune.events import ignore

pytestmark = pytest.mark.usefixtures("captioner")


def test_undo_brings_every_byte_back(photos: Path) -> None:
    (photos / "a.txt").write_bytes(b"\xff\xfeno UTF-8\x00")
    (photos / "b.caption").write_bytes(b"\xef\xbb\xbfwith a mark\r\n")
    before = {file: file.read_bytes() for file in photos.rglob("*") if file.is_file()}
    run.caption(settings(photos, existing="overwrite"), ignore)
    assert (photos / "a.txt").read_text() == "a square 1\n"
    undone = undo(photos)
    assert undone is not None
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
    assert undo(photos) is None


def test_undo_leaves_what_somebody_changed_since(photos: Path) -> None:
    run.caption(settings(photos), ignore)
    (photos / "a.txt").write_text("mine now")
    undone = undo(photos)
    assert undone is not None
    assert undone.changed == ["a.txt"]
    assert texts(photos) == {"a.txt": "mine now"}


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


def captioned(photos: Path, **captioning: object) -> Path:
    """Captions the squares; the folder of that sitting."""
    run.caption(settings(photos, **captioning), ignore)
    return photos / FOLDER / "001"


def test_undo_follows_no_link_in_place_of_its_own_folder(photos: Path) -> None:
    elsewhere = photos.parent / "elsewhere"
    (elsewhere / "7" / "before").mkdir(parents=True)
    (elsewhere / "7" / "session.json").write_text("{}")
    (photos / FOLDER).symlink_to(elsewhere)
    assert undo(photos) is None
    assert (elsewhere / "7" / "session.json").exists()


def test_folders_that_are_no_sittings_are_left_alone(photos: Path) -> None:
    for name in ("2024", "\u00b2", "notes"):
        (photos / FOLDER / name).mkdir(parents=True)
        (photos / FOLDER / name / "mine.txt").write_text("mine")
    run.caption(settings(photos), ignore)
    assert undo(photos) is not None
    assert undo(photos) is None
    assert texts(photos) == {}
    assert len(list((photos / FOLDER).rglob("mine.txt"))) == 3


def test_old_captions_of_what_was_changed_since_are_kept_and_told(photos: Path) -> None:
    (photos / "a.txt").write_text("first")
    captioned(photos, existing="overwrite")
    (photos / "a.txt").write_text("changed since")
    undone = undo(photos)
    assert undone is not None
    assert undone.changed == ["a.txt"]
    assert undone.old is not None
    assert (undone.old / "a.txt").read_text() == "first"
    assert texts(photos) == {"a.txt": "changed since"}
    assert undo(photos) is None


def test_a_damaged_copy_of_an_old_caption_is_not_put_back(photos: Path) -> None:
    (photos / "a.txt").write_text("first")
    sitting = captioned(photos, existing="overwrite")
    (sitting / "before" / "a.txt").write_text("something else")
    undone = undo(photos)
    assert undone is not None
    assert "damaged" in undone.failed["a.txt"]
    assert texts(photos) == {"a.txt": "a square 1\n"}


def test_a_missing_copy_of_an_old_caption_does_not_keep_the_others_from_coming_back(photos: Path) -> None:
    (photos / "a.txt").write_text("first")
    (photos / "b.txt").write_text("second")
    sitting = captioned(photos, existing="overwrite")
    (sitting / "before" / "a.txt").unlink()
    undone = undo(photos)
    assert undone is not None
    assert list(undone.failed) == ["a.txt"]
    assert texts(photos)["b.txt"] == "second"


def test_old_captions_whose_line_in_the_journal_was_lost_are_kept(photos: Path) -> None:
    (photos / "a.txt").write_text("first")
    sitting = captioned(photos, existing="overwrite")
    journal = sitting / "journal.jsonl"
    journal.write_bytes(b"\xff not UTF-8\n" + b"\n".join(journal.read_bytes().split(b"\n")[1:]) + b'{"file": 5}\n')
    undone = undo(photos)
    assert undone is not None
    assert undone.changed == ["a.txt"]
    assert undone.old is not None
    assert (undone.old / "a.txt").read_text() == "first"


def test_a_link_comes_back_as_the_link_it_was(photos: Path) -> None:
    shared = photos.parent / "shared.txt"
    shared.write_text("of many")
    (photos / "a.txt").symlink_to(shared)
    captioned(photos, existing="overwrite")
    assert shared.read_text() == "of many"
    assert not (photos / "a.txt").is_symlink()
    undo(photos)
    assert (photos / "a.txt").readlink() == shared
    assert shared.read_text() == "of many"


def test_permissions_of_a_caption_stay_as_they_are(photos: Path) -> None:
    (photos / "a.txt").write_text("first")
    (photos / "a.txt").chmod(0o640)
    captioned(photos, existing="overwrite")
    assert (photos / "a.txt").stat().st_mode & 0o777 == 0o640
    undo(photos)
    assert (photos / "a.txt").stat().st_mode & 0o777 == 0o640


def test_in_a_folder_that_is_linked_to_only_caption_files_are_touched(photos: Path) -> None:
    outside = photos.parent / "outside"
    outside.mkdir()
    (outside / "settings.conf").write_text("a square 1\n")
    (photos / "link").symlink_to(outside)
    sitting = captioned(photos)
    journal = sitting / "journal.jsonl"
    line = json.loads(journal.read_text().splitlines()[0])
    journal.write_text(journal.read_text() + json.dumps({**line, "file": "link/settings.conf"}) + "\n")
    undo(photos)
    assert (outside / "settings.conf").read_text() == "a square 1\n"


def test_undo_waits_for_no_other_process(photos: Path) -> None:
    captioned(photos)
    with held_folder(photos), pytest.raises(StorageError, match="being written by process"):
        undo(photos)
    assert texts(photos) != {}


def test_captions_of_an_ending_that_the_settings_name_are_undone_in_folders_that_are_linked_to(photos: Path) -> None:
    outside = (photos / "more").rename(photos.parent / "outside")
    (photos / "more").symlink_to(outside)
    run.caption(settings_of_rows({"path": str(photos), "captions": ".cap"}), ignore)
    assert (outside / "e.cap").exists()
    undone = undo(photos, [".cap"])
    assert undone is not None
    assert not undone.failed
    assert not (outside / "e.cap").exists()
