"""Locks: files that say which process is writing in a folder, so that no second one does.

A lock of a process that died, also by a power cut, is taken over, and so is the copy of a lock that came along with a
copied folder. One of another machine, on a file system that both have, cannot be judged from here: it is respected.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fluxtune.errors import StorageError

_IDENTITY = ("pid", "started", "boot", "host", "path", "file")
_NOBODY = {**dict.fromkeys(_IDENTITY), "host": socket.gethostname()}
"""Whose lock is no identity: a crash cut it off, or its owner is writing it just now."""
_WRITING = 0.5
"""Seconds in which an owner has surely written its identity."""


@contextmanager
def held(lock: Path, what: str) -> Iterator[None]:
    """Holds a lock file.

    Args:
        what: what is being written, as it reads behind "this" in a message.

    Raises:
        StorageError: another process holds it, or it cannot be made.
    """
    owner = _take(lock, what)
    try:
        yield
    finally:
        with suppress(OSError):  # what cannot be removed is taken over once this process is gone
            if _read_owner(lock) == owner:
                lock.unlink()


def _take(lock: Path, what: str) -> dict[str, Any]:
    """Create the lock file with our identity, clearing away a stale one; returns the identity."""
    try:
        while True:
            try:
                return _create(lock)
            except FileExistsError:
                _clear_if_stale(lock, what)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        hint = "check that you may write there, and that the disk is not full"
        raise StorageError(f"cannot lock the {what}: {reason}", where=str(lock), hint=hint) from error


def _create(lock: Path) -> dict[str, Any]:
    with open(lock, "x", encoding="utf-8") as file:
        owner = _identity(lock, os.fstat(file.fileno()))
        try:
            file.write(json.dumps(owner))
            file.flush()
        except OSError:
            with suppress(OSError):
                lock.unlink()
            raise
    return owner


def _clear_if_stale(lock: Path, what: str) -> None:
    """Remove the lock of a process that is gone; raises StorageError when its holder may still write."""
    holder = _read_owner(lock)
    if holder == _NOBODY:
        time.sleep(_WRITING)
        holder = _read_owner(lock)
    if holder is None:
        return
    if holder["host"] != socket.gethostname():
        raise StorageError(
            f"locked by process {holder['pid']} on another machine, {holder['host']}",
            where=str(lock),
            hint="wait for it; if nothing runs there any more, remove the lock file",
        )
    if _alive(holder) and not _is_copy(lock, holder):
        raise StorageError(
            f"this {what} is being written by process {holder['pid']}",
            where=str(lock),
            hint="wait until it ends, or stop it",
        )
    # Renaming lets only one of several waiting processes clear the lock away.
    aside = lock.with_name(f".lock.stale.{os.getpid()}")
    try:
        os.replace(lock, aside)
    except FileNotFoundError:
        return
    if _read_owner(aside) == holder:
        aside.unlink()
    else:
        os.replace(aside, lock)


def _read_owner(lock: Path) -> dict[str, Any] | None:
    """Who holds the lock, or None when it is free."""
    try:
        owner = json.loads(lock.read_text(encoding="utf-8"))
        return {key: owner[key] for key in _IDENTITY}
    except FileNotFoundError:
        return _NOBODY if lock.is_symlink() else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return _NOBODY


def _identity(lock: Path, status: os.stat_result) -> dict[str, Any]:
    """This process, told apart from a later one with the same number: by its start, and by the boot. With the lock's
    own place, by which copies of it are told."""
    return {
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "boot": _boot_id(),
        "host": socket.gethostname(),
        "path": str(lock.absolute()),
        "file": f"{status.st_dev}:{status.st_ino}",
    }


def _is_copy(lock: Path, holder: dict[str, Any]) -> bool:
    """Whether the holder's lock is another file, at another place: neither renamed nor mounted twice."""
    status = os.stat(lock)
    here = str(lock.absolute()), f"{status.st_dev}:{status.st_ino}"
    return here[0] != holder["path"] and here[1] != holder["file"]


def _alive(holder: dict[str, Any]) -> bool:
    started = _started(holder["pid"]) if holder["pid"] else None
    return started is not None and (holder["boot"], holder["started"]) == (_boot_id(), started)


def _boot_id() -> str | None:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.is_file() else None


def _started(pid: int) -> float | None:
    """When a process started (only comparable on one machine), or None when it is gone or a zombie."""
    import psutil

    if _boot_id() is None:
        try:
            return round(psutil.Process(pid).create_time(), 2)
        except psutil.NoSuchProcess:
            return None
    # In ticks since the boot: unlike psutil's clock time, no adjustment of the clock moves it.
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else float(fields[18])
