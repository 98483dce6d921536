"""The standard streams where they are closed, full, or read by nobody: the work goes on without them."""

from __future__ import annotations

import os
import sys
from typing import TextIO

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


def _leave(stream: TextIO, error: OSError) -> None:
    if not isinstance(error, BrokenPipeError):
        _refused.append((stream.name.strip("<>"), error))
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
