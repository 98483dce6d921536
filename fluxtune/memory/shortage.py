"""Memory that does not suffice, told as what it is: an error of the plan, not a bug."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fluxtune.errors import OutOfMemoryError

# What the allocators of CUDA, of cuBLAS and of the processor say.
_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


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
    # torch.OutOfMemoryError is a RuntimeError, and the processor's allocator raises a plain one.
    except (MemoryError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        if not isinstance(error, MemoryError) and not any(sign in reason.lower() for sign in _SIGNS):
            raise
        told = f" ({reason})" if reason else ""
        raise OutOfMemoryError(f"{what} does not fit in memory{told}", hint=hint) from error
