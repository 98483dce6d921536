"""Memory that only the process itself can give back, measured while something is done."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def anonymous() -> int:
    """Bytes of this process's memory that is no file's."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1])


@contextmanager
def watched() -> Iterator[dict[str, int]]:
    """Measures ``anonymous`` fifty times a second; the result is whole at the end."""
    before = anonymous()
    seen, over = {"peak": 0, "after": 0}, threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            seen["peak"] = max(seen["peak"], anonymous() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        seen["after"] = anonymous() - before
        seen["peak"] = max(seen["peak"], seen["after"])
        over.set()
        thread.join()
