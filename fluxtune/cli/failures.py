"""Failures that are none of ours, as ones that are: wrong command lines, a system that refuses, and bugs."""

from __future__ import annotations

import errno
import os
import platform
import tempfile
import traceback

import typer

from fluxtune import __version__
from fluxtune.errors import FluxtuneError, OutOfMemoryError, StorageError, UsageError
from fluxtune.redaction import for_sharing

_LONGEST_SHOWN = 300

_OF_THE_SYSTEM = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space: your quota is used up",
    errno.EFBIG: "this file system takes no file so large: use another disk",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "check who may read and write there",
    errno.EPERM: "check who may read and write there",
    errno.EIO: "the disk or the network behind it failed: check it, then run the command again",
    errno.ESTALE: "the network file system was lost: mount it again, then run the command again",
    errno.EMFILE: "close other programs, or raise `ulimit -n`",
    errno.ENFILE: "close other programs: the system has no more open files to give",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "remove the links that lead to themselves",
}
"""What a system may refuse to any program -> what mends it. Other errors of the system are bugs of the caller."""


def as_ours(error: Exception, arguments: list[str]) -> FluxtuneError:
    """What the user is told of an exception; of a bug also where its log is."""
    match error:
        case FluxtuneError():
            return error
        case typer.TyperException():
            return _usage_error(error)
        case MemoryError():
            return OutOfMemoryError("there is not enough system memory", hint="close other programs, or add swap space")
        case OSError() if error.errno in _OF_THE_SYSTEM:
            return storage_error(error)
        case OSError() if not _has_working_folder():
            return StorageError("the working folder does not exist any more", hint="cd to a folder that does")
    return _unexpected(error, arguments)


def storage_error(error: OSError, where: str | None = None) -> StorageError:
    """What a system says of a file or a stream."""
    place = where or (None if error.filename is None else _cut(os.fsdecode(error.filename)))
    hint = _OF_THE_SYSTEM.get(error.errno or 0, "check that it can be written")
    return StorageError((error.strerror or str(error)).lower(), where=place, hint=hint)


def _usage_error(error: typer.TyperException) -> UsageError:
    """What Typer found wrong with the command line, as one of ours."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "fluxtune"
    near = sorted(getattr(error, "possibilities", None) or ())
    message = getattr(error, "message", "") if near else error.format_message()
    return UsageError(
        _cut(message[:1].lower() + message[1:].rstrip(".")),
        where=command,
        hint=f"did you mean {' or '.join(near)}?" if near else f"`{command} --help` shows how it is used",
    )


def _unexpected(error: Exception, arguments: list[str]) -> FluxtuneError:
    """A bug: its traceback goes to a file, its name to the user."""
    message = f"unexpected {type(error).__name__}: {_cut(str(error))}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="fluxtune-error-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as log:
            told = f"fluxtune {__version__}, Python {platform.python_version()}, {platform.platform()}\n"
            told += f"arguments: {arguments}\n\n{''.join(traceback.format_exception(error))}"
            log.write(for_sharing(told))
    except OSError as reason:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return FluxtuneError(
            message,
            where=f"{last.filename}:{last.lineno}",
            hint=f"this is a bug in fluxtune: please report it; no log of it can be written ({reason.strerror})",
        )
    return FluxtuneError(message, hint=f"this is a bug in fluxtune: please report it together with {log.name}")


def _has_working_folder() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."
