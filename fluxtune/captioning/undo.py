"""Taking back what the last captioning of a folder wrote."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fluxtune.captioning.journal import Entry, digest_of, entries, forget, held_folder, sittings
from fluxtune.dataset.captions import SUFFIXES
from fluxtune.errors import StorageError
from fluxtune.files import clear_partials, partial_of, storage_errors, write_bytes, write_text


@dataclass
class Undone:
    """What became of the caption files of a sitting, by their paths from the folder of pictures.

    `changed` are those that somebody changed since; they are left as they are, and what they were before the
    captioning stays in `old`. `failed` are those that could not be brought back, each with the reason; undoing once
    more tries them again.
    """

    restored: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    old: Path | None = None

    def as_data(self) -> dict[str, Any]:
        """The same as JSON data."""
        return {**asdict(self), "old": self.old and str(self.old)}


def undo(root: Path, endings: Iterable[str] = ()) -> Undone | None:
    """Takes back the last captioning of a folder: old captions come back, new ones go.

    Args:
        endings: of caption files, besides those that are common; in folders that are linked to, no others are touched.

    Returns:
        What was done, or None where there is no captioning to undo.

    Raises:
        StorageError: another process is captioning the folder, or nothing can be written there.
    """
    root = root.resolve()
    if next(sittings(root), None) is None:
        return None
    with held_folder(root):
        sitting = next(sittings(root), None)
        if sitting is None:
            return None
        undone, endings = Undone(), (*SUFFIXES, *endings)
        noted = entries(sitting)
        clear_partials(root / entry.file for entry in noted)
        for entry in noted:
            try:
                if not (root / entry.file).parent.resolve().is_relative_to(root) and not entry.file.endswith(endings):
                    raise StorageError("it lies in a folder that is linked to, and is no caption file")
                _undo(root, sitting, entry, undone)
            except StorageError as error:
                undone.failed[entry.file] = error.message
        _undo_what_was_not_noted(root, sitting, undone)
        if not undone.failed and any((sitting / "before" / name).exists() for name in undone.changed):
            undone.old = sitting / "before"
        if undone.old is not None:
            write_text(sitting / "undone", "")
        elif not undone.failed:
            forget(sitting)
        return undone


def _undo(root: Path, sitting: Path, entry: Entry, undone: Undone) -> None:
    file, old = root / entry.file, sitting / "before" / entry.file
    with storage_errors(file):
        now = digest_of(file)
    if now == entry.before:
        return
    if now != entry.after:
        undone.changed.append(entry.file)
    elif entry.before is None and entry.link is None:
        with storage_errors(file):
            file.unlink()
        undone.removed.append(entry.file)
    else:
        _restore(file, old, entry)
        undone.restored.append(entry.file)


def _restore(file: Path, old: Path, entry: Entry) -> None:
    if entry.before is not None:
        with storage_errors(old):
            content = old.read_bytes() if old.is_file() else b""
        if hashlib.sha256(content).hexdigest() != entry.before:
            raise StorageError("what was kept of it is missing or damaged")
    if entry.link is None:
        write_bytes(file, content)
        return
    # What it was a link to, if that was there, was not written to and is left alone.
    aside = partial_of(file)
    with storage_errors(file):
        aside.unlink(missing_ok=True)
        aside.symlink_to(entry.link)
        os.replace(aside, file)


def _undo_what_was_not_noted(root: Path, sitting: Path, undone: Undone) -> None:
    """Old captions whose lines in the journal were lost are kept, unless they are still what the files hold."""
    noted = {entry.file for entry in entries(sitting)}
    folder = sitting / "before"
    for old in sorted(folder.rglob("*")) if folder.is_dir() and not folder.is_symlink() else ():
        name = old.relative_to(folder).as_posix()
        if name in noted or not old.is_file() or old.name.startswith("."):  # what a kill left of a copy is hidden
            continue
        try:
            kept = digest_of(root / name) == digest_of(old)
        except OSError:
            kept = False
        if not kept:
            undone.changed.append(name)
