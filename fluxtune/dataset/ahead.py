"""Work on a list's items in a few threads, a bounded way ahead of whoever takes the results."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

DECODERS = min(4, os.cpu_count() or 1)
"""Pictures decoded at once: each may take up to 1 GiB (``images.MAX_PIXELS``)."""


def ahead(work: Callable[[T], R], items: Iterable[T], threads: int, waiting: int) -> Generator[R, None, None]:
    """``map(work, items)``, in order, with at most ``waiting`` results begun and not yet taken.

    An error of ``work`` is raised where its result would be. To be closed (``contextlib.closing``): then what was not
    begun never is, and the threads have ended.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        begun: deque[Future[R]] = deque()
        try:
            for item in items:
                begun.append(pool.submit(work, item))
                if len(begun) == waiting:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()
