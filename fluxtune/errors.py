"""Every way fluxtune can fail, and the exit code a script sees for it.

The numbers are a contract: scripts and CI jobs branch on them. ``ExitCode`` is the one place they are written;
the table in the documentation is generated from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, StrEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """Exit codes of every ``fluxtune`` command; ``meaning`` is the line shown in the documentation."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> ExitCode:
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    DONE = 0, "done"
    UNEXPECTED = 1, "unexpected error: a bug; the message names the log"
    USAGE = 2, "usage or configuration"
    DATA = 3, "data errors"
    MEMORY = 4, "does not fit in memory"
    BASE_MODEL = 5, "base model missing, gated, offline or of the wrong kind"
    STORAGE = 6, "storage: disk, permissions, lock, checkpoint"
    DIVERGED = 7, "training diverged"
    VERIFICATION = 8, "an export failed its verification"
    STRICT = 9, "warnings under --strict"
    STOPPED_EARLY = 75, "stopped early as asked; can be resumed"
    INTERRUPTED = 130, "SIGINT (Ctrl-C)"
    TERMINATED = 143, "SIGTERM, or the terminal was closed"


class Refusal(StrEnum):
    """What a run is refused for unless its user accepts it (``--accept``): errors in pictures or captions; more memory
    than the card has; a data set that is not the one that it was begun with."""

    DATA = "data"
    MEMORY = "memory"
    CHANGED_DATA = "changed-data"


class FluxtuneError(Exception):
    """A failure that the user can understand and mend.

    Args:
        message: what is wrong: what was seen, and what was wanted.
        where: the place, for instance ``config.toml:12`` or a picture's path.
        hint: one action that mends it.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.UNEXPECTED

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f"\n\nhint: {self.hint}" if self.hint else ""
        return f"{place}{self.message}{advice}"


class UsageError(FluxtuneError):
    """A command was called in a way it does not understand."""

    exit_code = ExitCode.USAGE


class ConfigError(UsageError):
    """One or more settings are wrong; ``problems`` holds them all, so that they are shown at once."""

    def __init__(self, problems: list[FluxtuneError]) -> None:
        count = len(problems)
        super().__init__(f"{count} problem{'s' if count > 1 else ''} in the configuration")
        self.problems = problems

    def __str__(self) -> str:
        return "\n\n".join(str(problem) for problem in self.problems)


class DataError(FluxtuneError):
    """A picture, a caption or a folder of them cannot be used.

    Args:
        check: name of the data check that found it (``dataset/checks.py``).
    """

    exit_code = ExitCode.DATA

    def __init__(
        self, message: str, *, where: str | None = None, hint: str | None = None, check: str = "unreadable"
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.check = check


class OutOfMemoryError(FluxtuneError):
    """The work does not fit in the memory there is."""

    exit_code = ExitCode.MEMORY


class BaseModelError(FluxtuneError):
    """The base model is missing, gated, offline or of the wrong kind."""

    exit_code = ExitCode.BASE_MODEL


class StorageError(FluxtuneError):
    """A file or folder cannot be written, read or locked, or a checkpoint is damaged."""

    exit_code = ExitCode.STORAGE


class HubError(FluxtuneError):
    """Nothing can be put on the hub: it refuses, cannot be reached, or is switched off."""

    exit_code = ExitCode.STORAGE


class DivergedError(FluxtuneError):
    """The loss or the gradients stopped being finite."""

    exit_code = ExitCode.DIVERGED


class VerificationError(FluxtuneError):
    """A written file does not say what it should when it is read back."""

    exit_code = ExitCode.VERIFICATION


class Stopped(FluxtuneError):
    """A run was stopped on purpose and saved; ``exit_code`` tells by what."""

    def __init__(self, message: str, exit_code: ExitCode, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code  # type: ignore[misc]


class ProcessError(FluxtuneError):
    """Another process of the run failed; ``exit_code`` is that of its failure."""

    def __init__(self, message: str, exit_code: ExitCode, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, where=where, hint=hint)
        self.exit_code = exit_code  # type: ignore[misc]


def some_names(names: Iterable[str], shown: int = 5) -> str:
    """For a message: the first few names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + more
