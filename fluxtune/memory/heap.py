"""Memory that was freed, and that the C library has not given back to the system.

glibc keeps freed blocks of up to 32 MiB for itself, and between blocks that live on they are useless: a model that is
quantised on a processor, layer by layer, would hold several times what is left of it in the end.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache


def trim_heap() -> None:
    """Give whole free pages back to the system; does nothing where the C library is not glibc."""
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
