"""The standard streams where they are closed, full, or read by nobody: the work goes on without them."""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import Any, TextIO

from fluxtune.cli.failures import storage_error
from fluxtune.errors import StorageError

_refused: list[tuple[str, OSError]] = []
"""Name of a stream that took no more, and why; a reader who left is no reason."""


def open_missing() -> None:
    """Give the standard streams that the caller closed a place to go, so that no other file gets their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def write_line(stream: TextIO, text: str) -> None:
    """Write a line; once the stream takes no more, further lines go nowhere and the work goes on."""
    try:
        stream.write(f"{text}\n")
        stream.flush()
    except OSError as error:
        _leave(stream, error)


class Lasting:
    """A stream for a library that writes by itself: as with ``write_line``, the work goes on when it takes no more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text, or lose it."""
        try:
            return self._stream.write(text)
        except OSError as error:
            _leave(self._stream, error)
            return len(text)

    def flush(self) -> None:
        """Write out what waits, or lose it."""
        try:
            self._stream.flush()
        except OSError as error:
            _leave(self._stream, error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def finish() -> StorageError | None:
    """Write out what is left, and tell what was lost, if anything; Python's own flush at exit then finds nothing."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            _leave(stream, error)
    if not _refused:
        return None
    name, reason = _refused[0]
    _refused.clear()
    return storage_error(reason, where=name)


def nobody_reads(stream: TextIO) -> bool:
    """Whether the reader of a stream has left; one who has not sees an empty line."""
    try:
        stream.write("\n")
        stream.flush()
    except BrokenPipeError:
        return True
    except OSError:
        return False
    return False


def _is_reader_gone(stream: TextIO, error: OSError) -> bool:
    """Whether whoever read closed the pipe, or the terminal."""
    terminal_closed = error.errno == errno.EIO and stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)
    return isinstance(error, BrokenPipeError) or terminal_closed


def _leave(stream: TextIO, error: OSError) -> None:
    if not _is_reader_gone(stream, error):
        _refused.append((stream.name.strip("<>"), error))
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
