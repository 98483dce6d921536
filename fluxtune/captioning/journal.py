"""What a captioning wrote over, so that it can be gone on with after a kill, and undone (``undo.py``).

In the folder of pictures, `.fluxtune-captions/NUMBER/` holds a sitting: `session.json` says what was asked,
`journal.jsonl` has a line for each caption file before it is written, and `before/` the old files as they were.
One process at a time writes captions in a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path, PurePath
from typing import Any

from fluxtune.captioning.selection import caption_file
from fluxtune.config.schema import Config
from fluxtune.dataset.folder import Item, folder_path
from fluxtune.errors import StorageError
from fluxtune.files import (
    append_line,
    clear_partials,
    json_lines,
    storage_errors,
    write_bytes,
    write_json,
    write_text,
)
from fluxtune.locks import held

FOLDER = ".fluxtune-captions"


@dataclass(frozen=True)
class Entry:
    """One caption file: its path from the folder of pictures, SHA-256 of its content before (None: there was none) and
    after, and where it led if it was a link."""

    file: str
    before: str | None
    after: str
    link: str | None = None


class Journal:
    """The sitting under way in one folder of pictures."""

    def __init__(self, root: Path, asked: dict[str, Any]) -> None:
        self._root, self._asked = root, asked
        self._sitting: Path | None = None
        self._done: dict[str, Entry] = {}
        self._seen: dict[str, str | None] = {}
        self._look()

    @property
    def goes_on(self) -> bool:
        """Whether a sitting that was cut off is gone on with."""
        return bool(self._done)

    @contextmanager
    def held(self) -> Iterator[None]:
        """The time in which captions are written: by this process alone, in the last sitting if that was cut off and
        the same was asked, else in a new one. One in which nothing was written leaves nothing.

        Raises:
            StorageError: another process is captioning the folder, or it cannot be written.
        """
        with held_folder(self._root) as folder:
            self._look()
            clear_partials(self._root / name for name in self._done)
            if self._sitting is None:
                self._sitting = _new_sitting(folder)
                write_json(self._sitting / "session.json", self._asked)
            try:
                yield
            finally:
                if not self._done:
                    forget(self._sitting)

    def is_waiting(self, name: str) -> bool:
        """Whether a caption file is still to be written, and not captioned already by the sitting that is gone on
        with. What it holds now is kept in mind: `write` leaves it alone if somebody changes it from now on."""
        try:
            self._seen[name] = digest_of(self._root / name)
        except OSError:  # told when it is to be written
            self._seen[name] = None
        return name not in self._done or self._seen[name] == self._done[name].before

    def write(self, name: str, caption: str) -> bool:
        """Writes the caption, after noting it down and keeping what was there.

        Returns:
            False, and nothing is written, where somebody changed the file since `is_waiting`.

        Raises:
            StorageError: something cannot be written.
        """
        assert self._sitting is not None, "captions are written while the journal is held"
        file, content = self._root / name, f"{caption}\n".encode()
        with storage_errors(file):
            before = digest_of(file)
            if before != self._seen[name]:
                return False
            link = os.readlink(file) if file.is_symlink() else None
            if before is not None and name not in self._done:
                write_bytes(self._sitting / "before" / name, file.read_bytes())
        entry = Entry(name, before, hashlib.sha256(content).hexdigest(), link)
        append_line(self._sitting / "journal.jsonl", json.dumps(asdict(entry)), sync=True)
        self._done[name] = entry
        write_bytes(file, content)
        return True

    def finish(self) -> None:
        """Says that all was done that was asked: the next captioning is a new sitting."""
        if self._done and self._sitting is not None:
            write_text(self._sitting / "finished", "")

    def _look(self) -> None:
        """Finds the sitting to go on with."""
        last = next(sittings(self._root), None)
        goes_on = last is not None and not (last / "finished").exists() and _asked_in(last) == self._asked
        self._sitting = last if goes_on else None
        self._done = {entry.file: entry for entry in entries(last)} if last is not None and goes_on else {}


class Journals:
    """The journals of all folders of a configuration; a folder that it names twice has one."""

    def __init__(self, config: Config, asked: dict[str, Any]) -> None:
        roots = dict.fromkeys(_root(folder.path) for folder in config.dataset.folders)
        self._of_root = {root: Journal(root, asked) for root in roots}

    @property
    def go_on(self) -> bool:
        """Whether any sitting that was cut off is gone on with."""
        return any(journal.goes_on for journal in self._of_root.values())

    @contextmanager
    def held(self, items: Iterable[Item]) -> Iterator[None]:
        """As `Journal.held`, of those in whose folders pictures are to be captioned, or that are gone on with; nothing
        is written to other folders, which may be read-only."""
        wanted = {id(self._of(item)) for item in items}
        with ExitStack() as stack:
            for journal in self._of_root.values():
                if id(journal) in wanted or journal.goes_on:
                    stack.enter_context(journal.held())
            yield

    def waiting(self, items: Iterable[Item]) -> list[Item]:
        """The pictures whose caption files are still to be written (`Journal.is_waiting`)."""
        return [item for item in items if self._of(item).is_waiting(_name(item))]

    def write(self, item: Item, caption: str) -> bool:
        """As `Journal.write`, for a picture."""
        return self._of(item).write(_name(item), caption)

    def finish(self) -> None:
        """As `Journal.finish`, for all."""
        for journal in self._of_root.values():
            journal.finish()

    def _of(self, item: Item) -> Journal:
        return self._of_root[_root(item.folder.path)]


@contextmanager
def held_folder(root: Path) -> Iterator[Path]:
    """The folder of all sittings, for this process alone; it is gone again when there are none.

    Raises:
        StorageError: another process holds it, it cannot be made, or it is a link, which may lead anywhere.
    """
    folder = root / FOLDER
    if folder.is_symlink():
        hint = "remove the link: what fluxtune writes over is kept there"
        raise StorageError("this is a link to another place", where=str(folder), hint=hint)
    with ExitStack() as stack:
        stack.callback(_remove_if_empty, folder)
        while not folder.is_dir() or not _is_locked(folder, stack):
            with storage_errors(folder):
                folder.mkdir(exist_ok=True)
        _clear_away(folder)
        yield folder


def sittings(root: Path) -> Iterator[Path]:
    """The sittings of a folder that can be undone, the newest first; those in which something was noted down."""
    folder = root / FOLDER
    if folder.is_symlink() or not folder.is_dir():
        return
    for sitting in sorted(_numbered(folder), key=lambda path: int(path.name), reverse=True):
        noted = any((sitting / name).exists() for name in ("journal.jsonl", "before"))
        if (
            noted
            and (sitting / "session.json").is_file()
            and not sitting.is_symlink()
            and not (sitting / "undone").exists()
        ):
            yield sitting


def entries(sitting: Path) -> list[Entry]:
    """What was noted down, the last line of each file; one that a kill cut short stands for nothing that was done.

    A folder may come from somebody else: lines that name a place outside of it are passed over.

    Raises:
        StorageError: the journal cannot be read.
    """
    found: dict[str, Entry] = {}
    for line in json_lines(sitting / "journal.jsonl"):
        try:
            entry = Entry(**line)
            path = PurePath(entry.file)
            entry.file.encode()
        except (TypeError, ValueError):
            continue
        is_text = all(isinstance(value, str | None) for value in line.values()) and "\0" not in entry.file
        if is_text and not path.is_absolute() and not path.drive and ".." not in path.parts:
            found[entry.file] = entry
    return list(found.values())


def forget(sitting: Path) -> None:
    """Removes a sitting: all of it, as far as others see.

    Raises:
        StorageError: it cannot be removed.
    """
    gone = sitting.with_name(f".{sitting.name}.partial")
    with storage_errors(sitting):
        os.replace(sitting, gone)
    shutil.rmtree(gone, ignore_errors=True)


def digest_of(file: Path) -> str | None:
    """SHA-256 of a file's content, or None where there is none.

    Raises:
        OSError: it cannot be read.
    """
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None


def _is_locked(folder: Path, stack: ExitStack) -> bool:
    """Whether the folder is this process's now, or another one has just taken it away."""
    try:
        stack.enter_context(held(folder / "lock", "folder's journal of captions"))
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return False
        raise
    return True


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _clear_away(folder: Path) -> None:
    """Removes sittings that a kill ended before anything was noted down, or while they were removed."""
    with storage_errors(folder):
        for sitting in [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]:
            names = {file.name for file in sitting.iterdir() if not file.name.endswith(".partial")}
            if sitting.name.endswith(".partial") or (sitting in _numbered(folder) and names <= {"session.json"}):
                shutil.rmtree(sitting, ignore_errors=True)


def _new_sitting(folder: Path) -> Path:
    numbers = [int(path.name) for path in _numbered(folder)]
    for number in count(max(numbers, default=0) + 1):
        with storage_errors(folder), suppress(FileExistsError):
            (folder / f"{number:03d}").mkdir()
            break
    return folder / f"{number:03d}"


def _numbered(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.isascii() and path.name.isdigit()]


def _asked_in(sitting: Path) -> Any:
    try:
        return json.loads((sitting / "session.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _root(path: str) -> Path:
    return folder_path(path).resolve()


def _name(item: Item) -> str:
    return caption_file(item).relative_to(folder_path(item.folder.path)).as_posix()
