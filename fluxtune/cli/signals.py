"""Ctrl-C and SIGTERM: the first asks the work to stop at a good place, the second leaves at once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from fluxtune.errors import ExitCode

_CODES = {signal.SIGINT: ExitCode.INTERRUPTED, signal.SIGTERM: ExitCode.TERMINATED}
_STDERR = 2
_SHOW_CURSOR = "\x1b[?25h"


@contextmanager
def stop_requests() -> Iterator[Callable[[], ExitCode | None]]:
    """While this is open, the first signal only sets what the yielded function returns: the code to stop with.

    From then on the system's own handling is back, so that a second signal ends the process even inside a long
    computation. The notice goes straight to the file descriptor: a handler may not enter a stream that is in use.
    """
    requested: list[ExitCode] = []

    def request(number: int, frame: FrameType | None) -> None:
        requested.append(_CODES[signal.Signals(number)])
        for each in _CODES:
            signal.signal(each, signal.SIG_DFL)
        again = "press Ctrl-C again" if number == signal.SIGINT else "send it again"
        show_cursor = _SHOW_CURSOR if sys.stderr.isatty() else ""
        notice = f"{show_cursor}\nstopping after this step, then saving; {again} to leave at once without saving\n"
        os.write(_STDERR, notice.encode())

    previous = {number: signal.signal(number, request) for number in _CODES}
    try:
        yield lambda: requested[0] if requested else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
