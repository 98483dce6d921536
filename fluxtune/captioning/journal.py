"""What a captioning wrote over, so that it can be gone on with after a kill, and undone.

In the folder of pictures, `.fluxtune-captions/NUMBER/` holds a sitting: `session.json` says what was asked,
`journal.jsonl` has a line for each caption file before it is written, and `before/` the old files as they were.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from fluxtune.config.schema import Config
from fluxtune.dataset.folder import Item, folder_path
from fluxtune.errors import UsageError
from fluxtune.files import append_line, write_bytes, write_json, write_text

FOLDER = ".fluxtune-captions"


@dataclass(frozen=True)
class Entry:
    """One caption file: its path from the folder of pictures, and SHA-256 of it before (None: there was none) and
    after."""

    file: str
    before: str | None
    after: str


@dataclass(frozen=True)
class Undone:
    """What became of the caption files of a sitting, by their paths from the folder of pictures.

    `changed` are those that somebody changed since; they are left as they are.
    """

    restored: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]


class Journal:
    """The sitting under way in one folder of pictures."""

    def __init__(self, root: Path, asked: dict[str, Any]) -> None:
        """Goes on with the last sitting where it was cut off and the same was asked, else begins a new one.

        Nothing is written yet.
        """
        self._root, self._asked = root, asked
        last = next(_sittings(root), None)
        unfinished = last is not None and not (last / "finished").exists() and _asked(last) == asked
        self._sitting = last if last is not None and unfinished else root / FOLDER / _number_after(last)
        self._done = {entry.file: entry for entry in _entries(self._sitting)}

    @property
    def goes_on(self) -> bool:
        """Whether a sitting that was cut off is gone on with."""
        return bool(self._done)

    def has_written(self, file: Path) -> bool:
        """Whether this sitting has captioned the file already, before it was cut off; a caption that somebody changed
        since is not to be touched either."""
        entry = self._done.get(self._name(file))
        return entry is not None and _digest(file) != entry.before

    @contextmanager
    def sitting(self) -> Iterator[None]:
        """The time in which captions are written. Its folder is made first, so that a place where nothing can be
        written is known before any work; one in which nothing was written leaves nothing.

        Raises:
            StorageError: the folder cannot be written.
        """
        if not (self._sitting / "session.json").exists():
            write_json(self._sitting / "session.json", self._asked)
        try:
            yield
        finally:
            if not self._done:
                _remove(self._sitting, self._root)

    def write(self, file: Path, caption: str) -> None:
        """Writes the caption, after noting it down and keeping what was there.

        Raises:
            StorageError: something cannot be written.
        """
        name, content = self._name(file), f"{caption}\n".encode()
        if name in self._done:  # noted down before it was cut off, and not written then
            before = self._done[name].before
        elif (before := _digest(file)) is not None:
            write_bytes(self._sitting / "before" / name, file.read_bytes())
        entry = Entry(name, before, hashlib.sha256(content).hexdigest())
        append_line(self._sitting / "journal.jsonl", json.dumps(asdict(entry), ensure_ascii=False))
        self._done[name] = entry
        write_bytes(file, content)

    def finish(self) -> None:
        """Says that all was done that was asked: the next captioning is a new sitting."""
        if self._done:
            write_text(self._sitting / "finished", "")

    def _name(self, file: Path) -> str:
        return file.relative_to(self._root).as_posix()


class Journals:
    """The journals of all folders of a configuration."""

    def __init__(self, config: Config, asked: dict[str, Any]) -> None:
        roots = dict.fromkeys(folder_path(folder.path) for folder in config.dataset.folders)
        self._of_root = {root: Journal(root, asked) for root in roots}

    @property
    def go_on(self) -> bool:
        """Whether any sitting that was cut off is gone on with."""
        return any(journal.goes_on for journal in self._of_root.values())

    def of(self, item: Item) -> Journal:
        """The journal of a picture's folder."""
        return self._of_root[folder_path(item.folder.path)]

    @contextmanager
    def sitting(self) -> Iterator[None]:
        """As `Journal.sitting`, of all."""
        with ExitStack() as stack:
            for journal in self._of_root.values():
                stack.enter_context(journal.sitting())
            yield

    def finish(self) -> None:
        """As `Journal.finish`, for all."""
        for journal in self._of_root.values():
            journal.finish()


def undo(root: Path) -> Undone:
    """Takes back the last captioning of a folder: old captions come back, new ones go.

    Raises:
        UsageError: nothing is there to be undone.
        StorageError: a file cannot be written.
    """
    last = next(_sittings(root), None)
    if last is None:
        raise UsageError(
            "there is no captioning to undo",
            where=str(root),
            hint="only what `fluxtune caption` wrote in this folder can be undone",
        )
    restored, removed, changed = [], [], []
    for entry in {entry.file: entry for entry in _entries(last)}.values():
        file = root / entry.file
        now = _digest(file)
        if now == entry.before:
            continue
        if now != entry.after:
            changed.append(entry.file)
        elif entry.before is None:
            file.unlink()
            removed.append(entry.file)
        else:
            write_bytes(file, (last / "before" / entry.file).read_bytes())
            restored.append(entry.file)
    _remove(last, root)
    return Undone(tuple(restored), tuple(removed), tuple(changed))


def _remove(sitting: Path, root: Path) -> None:
    """Removes a sitting, and with the last one the folder of all."""
    shutil.rmtree(sitting, ignore_errors=True)
    if next(_sittings(root), None) is None:
        shutil.rmtree(root / FOLDER, ignore_errors=True)


def _sittings(root: Path) -> Iterator[Path]:
    """The sittings of a folder, the newest first."""
    folder = root / FOLDER
    names = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    yield from sorted(names, key=lambda path: int(path.name), reverse=True)


def _number_after(last: Path | None) -> str:
    return f"{int(last.name) + 1 if last else 1:03d}"


def _asked(sitting: Path) -> Any:
    try:
        return json.loads((sitting / "session.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _entries(sitting: Path) -> list[Entry]:
    """The lines of the journal; a last one that a kill cut short stands for nothing that was done.

    A folder may come from somebody else: lines that name a place outside of it are passed over.
    """
    try:
        lines = (sitting / "journal.jsonl").read_text(encoding="utf-8").split("\n")
    except OSError:
        return []
    entries = []
    for line in lines:
        try:
            entry = Entry(**json.loads(line))
            path = PurePath(entry.file)
        except (ValueError, TypeError):
            continue
        if not path.is_absolute() and not path.drive and ".." not in path.parts:
            entries.append(entry)
    return entries


def _digest(file: Path) -> str | None:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None
