"""Reading and writing files so that a crash never leaves half of one.

Every write goes to a temporary name in the same folder, is synced, and is renamed over the target: readers see the
old file or the new one, nothing between.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
import zlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fluxtune.errors import StorageError, UsageError

_PASSING = {
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EIO", "EAGAIN", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EREMOTEIO"),
        *("ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH"),
    )
    if hasattr(errno, name)
}
"""Errors of a disk that is full or a file system that is away for a while, which can pass."""
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP}
"""What file systems say that do not let folders be synced."""
_WHOLE_FILE_HASHED = 64 * 2**20
"""Bytes; of larger files the ends stand for the whole in a fingerprint."""
_PIECE, _PIECES = 2**16, 64
"""Bytes of a piece of a file, and how many of them ``sampled_digest`` reads."""


def write_with(path: Path, write: Callable[[Path], None], make_folder: bool = True) -> None:
    """Let ``write`` fill a temporary file, then sync it and rename it to ``path``, whose permissions are kept.

    Args:
        make_folder: with those that it lies in; otherwise it must be there.

    Raises:
        StorageError: the folder cannot be made, the file cannot be written, or a device or pipe has its name.
    """
    refuse_special(path)
    temporary = partial_of(path)
    with storage_errors(path):
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            _sync(temporary)
            with suppress(OSError):  # there is no such file, or the file system has no permissions
                temporary.chmod(stat.S_IMODE(path.stat().st_mode))
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)


def partial_of(path: Path) -> Path:
    """The temporary name of this process for a file; short, for the name itself may be as long as the system takes."""
    return path.with_name(f"{_mark(path)}{os.getpid()}.partial")


def clear_partials(paths: Iterable[Path]) -> None:
    """Removes what killed processes left of files under temporary names; nobody else may be writing them now."""
    marks: dict[Path, set[str]] = defaultdict(set)
    for path in paths:
        marks[path.parent].add(_mark(path))
    for folder, wanted in marks.items():
        with suppress(OSError):
            for left in folder.glob(".????????.*.partial"):
                if left.name[:10] in wanted:
                    left.unlink()


def _mark(path: Path) -> str:
    return f".{zlib.crc32(os.fsencode(path.name)):08x}."


def write_bytes(path: Path, content: bytes, make_folder: bool = True) -> None:
    """Write ``content`` to ``path`` atomically."""
    write_with(path, lambda temporary: _dump(temporary, content), make_folder)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: object) -> None:
    """Write ``value`` to ``path`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write ``value`` to ``path`` as JSON with its own SHA-256, atomically; ``read_sealed`` tells any change of it. The
    folder must be there."""
    write_bytes(path, sealed(value), make_folder=False)


def read_sealed(path: Path) -> dict[str, Any]:
    """What ``write_sealed`` wrote.

    Raises:
        ValueError: a byte of it is another one than was written.
        StorageError: it cannot be read.
    """
    with storage_errors(path):
        content = path.read_bytes()
    try:
        value = json.loads(content.decode("utf-8"))
        if isinstance(value, dict) and value.pop("sha256", None) and sealed(value) == content:
            return value
    except RecursionError:
        pass
    raise ValueError("its content changed since it was written")


def sealed(value: dict[str, Any]) -> bytes:
    """What ``write_sealed`` writes."""
    digest = hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8")).hexdigest()
    return (json.dumps({**value, "sha256": digest}, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def append_line(path: Path, line: str, sync: bool = False) -> None:
    """Append one line to ``path`` in a single write, so that readers following the file see whole lines.

    After a line that a kill cut short it begins one of its own. A line that does not fit on the disk leaves nothing.

    Args:
        sync: return only when the line would survive a power cut.

    Raises:
        StorageError: the file cannot be written.
    """
    with storage_errors(path), open(path, "ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        fresh = file.read(1) in (b"", b"\n")
        left = memoryview((b"" if fresh else b"\n") + line.encode("utf-8") + b"\n")
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise
        if sync:
            os.fsync(file.fileno())
    if sync:
        with storage_errors(path):
            sync_folder(path.parent)


class PatientLines:
    """Appends lines to a file; what cannot be written waits, up to ``most`` lines, and goes first once it can."""

    def __init__(self, path: Path, most: int = 10_000) -> None:
        self._path = path
        self._waiting: deque[str] = deque(maxlen=most)
        self._failing = False

    def add(self, line: str) -> StorageError | None:
        """Append a line; returns what went wrong, when it does so for the first time since all was well."""
        self._waiting.append(line)
        try:
            append_line(self._path, "\n".join(self._waiting))
        except StorageError as error:
            known, self._failing = self._failing, True
            return None if known else error
        self._waiting.clear()
        self._failing = False
        return None


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file of JSON lines; a file that does not exist has none.

    What is no JSON object in UTF-8 is passed over: a kill can cut the last line short, and people edit files.

    Raises:
        StorageError: the file cannot be read.
    """
    refuse_special(path)
    with storage_errors(path), suppress(FileNotFoundError), open(path, "rb") as file:
        for line in file:
            try:
                value = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value


def is_special(path: Path) -> bool:
    """Whether a path is a pipe, a device or a socket: to open one may be to wait for ever, or to read without end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # a ValueError of a name with a zero byte in it
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def refuse_special(path: Path) -> None:
    """Refuse what is no file: reading may never end, and a rename would put a file in the place of a device.

    Raises:
        StorageError: it is a pipe, a device or a socket.
    """
    if is_special(path):
        raise StorageError("this is a pipe or a device, not a file", where=str(path), hint="name a file")


def sync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` survive a power cut (where the system lets a folder be synced)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's content, read in bounded memory."""
    digest = hashlib.sha256()
    with storage_errors(path), open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint_of(folder: Path, files: Iterable[Path]) -> str:
    """Hex digest of the names and contents of files below a folder, for cache keys.

    Small files count whole; of large ones size, time and both ends do, which is fast and still tells edits.
    """
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()}\0".encode())
        digest.update(_content_mark(file))
    return digest.hexdigest()


def sampled_digest(file: Path) -> str:
    """Hex digest of a file's size and of pieces of it from end to end: the same for a copy, whatever its name and time.

    Other content differs nearly everywhere, and so in what is read: 4 MiB at most.
    """
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(file, "rb") as content:
        for piece in range(_PIECES):
            content.seek(max(0, size - _PIECE) * piece // (_PIECES - 1))
            digest.update(content.read(_PIECE))
    return digest.hexdigest()


def _content_mark(file: Path) -> bytes:
    size = file.stat().st_size
    with open(file, "rb") as content:
        if size <= _WHOLE_FILE_HASHED:
            return hashlib.sha256(content.read()).digest()
        head = content.read(2**20)
        content.seek(-(2**20), 2)
        mark = f"{size}/{file.stat().st_mtime_ns}".encode()
        return hashlib.sha256(mark + head + content.read()).digest()


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Refuse to start what the disk cannot hold.

    Args:
        folder: where the bytes will go; need not exist yet.
        needed: bytes wanted.
        purpose: what they are for, as it reads in the message.

    Raises:
        StorageError: less than ``needed`` bytes are free.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    with storage_errors(folder):
        free = shutil.disk_usage(existing).free
    if free < needed:
        raise StorageError(
            f"{purpose} need {_size(needed)} of disk, but only {_size(free)} are free",
            where=str(folder),
            hint="free some space, or choose a folder on another disk",
        )


def require_folder(folder: Path) -> None:
    """Refuse a place that cannot become a folder, because it or what it lies in is a file.

    Raises:
        StorageError: it is one.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise StorageError("this is a file, not a folder", where=str(existing), hint="choose another folder")


def require_writable(path: Path) -> None:
    """Refuse a place in which no file or folder can be made, before the work that would end there.

    Raises:
        StorageError: what it lies in is no folder, or nothing can be written there.
    """
    require_folder(path.parent)
    existing = path.absolute().parent
    while not existing.exists():
        existing = existing.parent
    with storage_errors(path), tempfile.TemporaryFile(dir=existing):
        pass


def require_new_file(path: Path) -> None:
    """Refuse a file that cannot be written, before the work that would end in it; one that is there may be replaced.

    Raises:
        StorageError: it is a folder, a pipe or a device, or nothing can be written there.
    """
    refuse_special(path)
    if path.is_dir():
        raise StorageError("this is a folder, not a file", where=str(path), hint="name a file")
    require_writable(path)


def require_new_folder(destination: Path, what: str, apart_from: Iterable[Path] = ()) -> None:
    """Refuse a place for a new folder that is taken, or lies within what is to be left alone.

    Args:
        what: the new folder, as it reads in the message.
        apart_from: folders that it may not lie in.

    Raises:
        UsageError: something is there already, it would lie within one of those, or its name is no text.
    """
    if (readable := os.fsencode(destination).decode("utf-8", "replace")) != str(destination):
        raise UsageError("the name of the folder is no UTF-8 text", where=readable, hint="name another folder")
    if os.path.lexists(destination) and (not os.path.isdir(destination) or any(destination.iterdir())):
        raise UsageError("this is there already", where=str(destination), hint="name a folder that does not exist yet")
    for folder in apart_from:
        if destination.resolve().is_relative_to(folder.resolve()):
            raise UsageError(
                f"{what} would lie within the data set", where=str(destination), hint="name another folder"
            )


@contextmanager
def whole_folder(destination: Path) -> Iterator[Path]:
    """A folder under another name, to be filled; it is moved to ``destination`` at the end, whole or not at all.

    Raises:
        StorageError: it cannot be made; nothing is left behind.
    """
    parent = destination.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        half_made = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".partial", dir=parent))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageError(f"cannot write there: {reason}", where=str(parent), hint="choose another folder") from error
    try:
        yield half_made
        with storage_errors(destination):
            half_made.chmod(0o777 & ~_umask())
            try:
                os.replace(half_made, destination)
            except OSError:
                if not destination.is_dir() or any(destination.iterdir()):
                    raise
                # A mount or a link cannot be replaced. What describes the rest comes last.
                for child in sorted(half_made.iterdir(), key=Path.is_file):
                    shutil.move(child, destination / child.name)
            sync_folder(parent)
    finally:
        shutil.rmtree(half_made, ignore_errors=True)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns the system's errors into one that names the file and the mend.

    Raises:
        StorageError: for any OSError.
    """
    hints = {
        errno.ENOSPC: "free some disk space and run the command again",
        errno.EDQUOT: "your disk quota is used up: free some space and run the command again",
        errno.EACCES: "check that you may write there, or choose another folder",
        errno.EPERM: "check that you may write there, or choose another folder",
        errno.EROFS: "this file system is read-only: choose another folder",
        errno.ENAMETOOLONG: "choose a shorter name",
    }
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageError(
            f"cannot write or read the file: {reason}",
            where=str(path),
            hint=hints.get(error.errno or 0, "check the disk and the path"),
        ) from error
    except SafetensorError as error:  # its writer wraps the system's errors
        raise StorageError(
            f"cannot write the file: {error}", where=str(path), hint="check the disk: it may be full"
        ) from error


def waiting_helps(error: StorageError) -> bool:
    """Whether what failed may work later with nothing else changed: a full disk, a network file system that is away."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in _PASSING


def _size(number: int) -> str:
    """So many bytes, as people say it."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"


def _umask() -> int:
    """What the permissions of new folders lack; the system tells it only while it is set."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _dump(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
