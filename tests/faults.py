"""Faults of a disk, injected at one of a program's file operations after the other.

Every call that reaches the system for a path below a folder is counted: opening, reading, writing, syncing, renaming,
removing, making, listing, asking. The one with a chosen number fails with an error of the system, or the process is
killed there: that operation is half done, no later one has any effect, and with ``power_cut`` nothing is left of what
was not synced.
"""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fluxtune.lora import files as lora_files
from fluxtune.training import checkpoint

_BY_PATH = ("open", "mkdir", "unlink", "rmdir", "chmod", "stat", "lstat", "scandir", "listdir", "truncate")
_BY_TWO_PATHS = ("replace", "rename")


class Killed(BaseException):
    """The process is dead: every operation from here on raises this."""


@dataclass
class Faults:
    """What to do at which operation, and the operations so far, as ``verb path``.

    Attributes:
        at: number of the operation that fails, the first being 0; None: none does.
        error: the system's error there; None kills.
        lasting: all later operations fail as well, those that only read apart.
    """

    root: Path
    at: int | None = None
    error: int | None = None
    lasting: bool = False
    power_cut: bool = False
    seen: list[str] = field(default_factory=list)
    dead: bool = False
    unsynced: set[str] = field(default_factory=set)

    def operation(self, verb: str, path: str, half: Callable[[], object] = lambda: None) -> None:
        """Count an operation, and fail where it is its turn; ``half`` does a part of it first."""
        if self.dead:
            raise Killed
        number = len(self.seen)
        self.seen.append(f"{verb} {os.path.relpath(path, self.root)}")
        due = number == self.at or (self.lasting and self.at is not None and number > self.at and verb in _CHANGES)
        if not due:
            return
        half()
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error), path)
        self.dead = True
        for each in self.unsynced if self.power_cut else ():
            if _REAL["lexists"](each):
                _REAL["truncate"](each, 0)
        raise Killed

    def concerns(self, path: object, dir_fd: int | None = None) -> str | None:
        """The whole path, if it lies below the folder."""
        if isinstance(path, int):
            path, dir_fd = "", path
        try:
            place = os.fsdecode(path)  # type: ignore[arg-type]
            if dir_fd is not None:
                place = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), place).rstrip("/")
        except (TypeError, OSError):
            return None
        place = os.path.abspath(place)
        return place if place == str(self.root) or place.startswith(f"{self.root}/") else None


_CHANGES = {"create", "write", "fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "chmod", "truncate"}
_REAL: dict[str, Any] = {name: getattr(os, name) for name in (*_BY_PATH, *_BY_TWO_PATHS, "fsync")}
_REAL |= {"builtin open": io.open, "lexists": os.path.lexists}


class _File:
    """An open file whose reads and writes are operations; writes go straight to the system."""

    def __init__(self, faults: Faults, file: Any, path: str) -> None:
        self._faults, self._file, self._path = faults, file, path

    def write(self, content: Any) -> int:
        def half() -> None:
            self._file.write(content[: len(content) // 2])
            self._file.flush()

        self._faults.unsynced.add(self._path)
        self._faults.operation("write", self._path, half)
        written: int = self._file.write(content)
        self._file.flush()
        return written

    def read(self, *size: int) -> Any:
        self._faults.operation("read", self._path)
        return self._file.read(*size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextmanager
def injected(root: Path, at: int | None = None, error: int | None = None, **options: bool) -> Iterator[Faults]:
    """Inside, file operations below ``root`` are counted, and number ``at`` fails as ``Faults`` says."""
    faults = Faults(root, at, error, **options)
    with pytest.MonkeyPatch.context() as patch:
        for name in _BY_PATH:
            patch.setattr(os, name, _by_path(faults, name))
        for name in _BY_TWO_PATHS:
            patch.setattr(os, name, _by_two_paths(faults, name))
        patch.setattr(os, "fsync", _fsync(faults))
        patch.setattr(io, "open", _open(faults))
        patch.setattr(builtins, "open", _open(faults))
        for module in (checkpoint, lora_files):
            patch.setattr(module, "load_file", _loads(faults, module.load_file))
        yield faults


def _by_path(faults: Faults, name: str) -> Callable[..., Any]:
    def call(path: Any = ".", *arguments: Any, **options: Any) -> Any:
        if place := faults.concerns(path, options.get("dir_fd")):
            faults.operation(name, place)
        return _REAL[name](path, *arguments, **options)

    return call


def _by_two_paths(faults: Faults, name: str) -> Callable[..., Any]:
    def call(source: Any, target: Any, **options: Any) -> Any:
        if place := faults.concerns(target):
            faults.operation(name, place)
        _REAL[name](source, target, **options)
        before, after = os.path.abspath(source), os.path.abspath(target)
        faults.unsynced = {after + each[len(before) :] if each.startswith(before) else each for each in faults.unsynced}

    return call


def _fsync(faults: Faults) -> Callable[[int], None]:
    def call(descriptor: int) -> None:
        # Not the real one: the disk is not what is tried here, and it would take most of the time.
        if place := faults.concerns("", descriptor):
            faults.operation("fsync", place)
            faults.unsynced.discard(place)

    return call


def _open(faults: Faults) -> Callable[..., Any]:
    def call(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        place = None if isinstance(path, int) else faults.concerns(path)
        if place is None:
            return _REAL["builtin open"](path, mode, *arguments, **options)
        faults.operation("create" if set(mode) & set("wxa") else "open", place)
        return _File(faults, _REAL["builtin open"](path, mode, *arguments, **options), place)

    return call


def _loads(faults: Faults, load: Callable[..., Any]) -> Callable[..., Any]:
    """Of safetensors, which opens files by itself."""

    def call(path: Any) -> Any:
        if place := faults.concerns(path):
            faults.operation("load", place)
        return load(path)

    return call
