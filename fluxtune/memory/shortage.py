"""Memory that does not suffice, told as what it is: an error of the plan, not a bug."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from fluxtune.errors import OutOfMemoryError

T = TypeVar("T")

# What the allocators of CUDA, of cuBLAS and of the processor say.
_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


@dataclass(frozen=True)
class Shortage:
    """Work that ran out of memory; ``reason`` is what the allocator said, and may be empty."""

    reason: str


def tried(work: Callable[[], T]) -> T | Shortage:
    """What ``work`` returns, or that it ran out of memory. Of such work nothing is held any more.

    Raises:
        RuntimeError: whatever else goes wrong in it.
    """
    try:
        return work()
    # torch.OutOfMemoryError is a RuntimeError, and the processor's allocator raises a plain one.
    except (MemoryError, RuntimeError) as error:
        shortage = _shortage(error)
        if shortage is None:
            raise
        # Not the error: its traceback holds what the work was computing with.
        return shortage


@contextmanager
def fits_in_memory(what: str, hint: str) -> Iterator[None]:
    """Inside, running out of memory is raised as ours.

    Args:
        what: what does not fit, as the message begins.

    Raises:
        OutOfMemoryError: an allocator, of the card or of the system, had no more.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        shortage = _shortage(error)
        if shortage is None:
            raise
        raise does_not_fit(what, shortage, hint) from error


def does_not_fit(what: str, shortage: Shortage, hint: str) -> OutOfMemoryError:
    """The error that tells of a shortage; for ``what`` and ``hint`` see ``fits_in_memory``."""
    told = f" ({shortage.reason})" if shortage.reason else ""
    return OutOfMemoryError(f"{what} does not fit in memory{told}", hint=hint)


def _shortage(error: MemoryError | RuntimeError) -> Shortage | None:
    """None where an error is of another kind."""
    reason = str(error).partition("\n")[0]
    is_one = isinstance(error, MemoryError) or any(sign in reason.lower() for sign in _SIGNS)
    return Shortage(reason) if is_one else None
