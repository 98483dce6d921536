"""Ctrl-C and SIGTERM: the first asks the work to stop at a good place, the second leaves at once. A terminal that is
closed (SIGHUP) and a limit of time ask as a first one does."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from fluxtune.cli.time_limit import TimeLimit
from fluxtune.errors import ExitCode, Stopped
from fluxtune.events import Event, Sink

_HANG_UP = getattr(signal, "SIGHUP", None)
"""Windows has none."""
_CODES = {
    signal.SIGINT: ExitCode.INTERRUPTED,
    signal.SIGTERM: ExitCode.TERMINATED,
    **({_HANG_UP: ExitCode.TERMINATED} if _HANG_UP else {}),
}
_STDERR = 2
_SHOW_CURSOR = "\x1b[?25h"


@contextmanager
def termination_as_interruption() -> Iterator[Callable[[], ExitCode]]:
    """While this is open, SIGTERM and SIGHUP interrupt the work as Ctrl-C does, so that what is half made is cleared
    away.

    Yields:
        What an interruption ends with: called, it answers the exit code of the signal that came.
    """
    came = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        _take_no_more([number])
        raise KeyboardInterrupt

    alone = threading.current_thread() is threading.main_thread()
    ending = [number for number in _heard() if number != signal.SIGINT] if alone else []
    previous = {number: signal.signal(number, interrupt) for number in ending}
    try:
        yield lambda: ExitCode.TERMINATED if came else ExitCode.INTERRUPTED
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _heard() -> list[int]:
    """The signals that ask for a stop; under nohup the end of the terminal is none."""
    return [number for number in _CODES if number != _HANG_UP or signal.getsignal(number) is not signal.SIG_IGN]


def _take_no_more(numbers: Iterable[int]) -> None:
    """From now on these end the process at once, but for SIGHUP: of one terminal that is closed two or more come."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN if number == _HANG_UP else signal.SIG_DFL)


class StopRequests:
    """The signal that came, or the time that is over; called, it answers the exit code to stop with, or None.

    Until the work asks for the first time it has nothing to save, so a signal interrupts it wherever it is, with
    KeyboardInterrupt. From then on the work asks at its good places, and a signal is only noted.
    """

    def __init__(self, limit: TimeLimit | None = None) -> None:
        self.requested: ExitCode | None = None
        self.asked = False
        self._limit = limit

    def __call__(self) -> ExitCode | None:
        self.asked = True
        self._look_at_the_time()
        return self.requested

    def _look_at_the_time(self) -> None:
        if self.requested is None and self._limit is not None and self._limit.is_near():
            self.requested = ExitCode.STOPPED_EARLY

    def interrupting(self, on_event: Sink) -> Sink:
        """A sink that also interrupts the other threads of work that is to end, such as those of a download.

        A signal itself interrupts the main thread alone, and that one would wait for them; time that is over interrupts
        nothing by itself.
        """

        def emit(event: Event) -> None:
            if self._limit is not None:
                self._limit.sees(event)
            if not self.asked:
                self._look_at_the_time()
            if self.requested is not None and not self.asked:
                raise KeyboardInterrupt
            on_event(event)

        return emit


def _notice(number: int, at_work: bool) -> str:
    """What a first signal says: what comes of it, and of a second one."""
    doing, at_once = (
        ("stopping after this step, then saving", "leave at once without saving")
        if at_work
        else ("stopping", "leave at once")
    )
    again = "press Ctrl-C again" if number == signal.SIGINT else "send it again"
    show_cursor = _SHOW_CURSOR if sys.stderr.isatty() else ""
    return f"{show_cursor}\n{doing}; {again} to {at_once}\n"


@contextmanager
def stop_requests(
    hint: str | None = None, limit: TimeLimit | None = None, silently: bool = False
) -> Iterator[StopRequests]:
    """While this is open, the first signal asks for a stop, as ``StopRequests`` says.

    From then on the system's own handling is back, so that a second signal ends the process even inside a long
    computation. The notice goes straight to the file descriptor: a handler may not enter a stream that is in use.

    Args:
        hint: what to do after an interruption.
        limit: how long the work may take.
        silently: without a word on the terminal.

    Raises:
        Stopped: the work was interrupted before it first asked.
    """
    requests = StopRequests(limit)

    def request(number: int, frame: FrameType | None) -> None:
        requests.requested = _CODES[signal.Signals(number)]
        _take_no_more(previous)
        if not silently:
            with suppress(OSError):  # the terminal may be gone
                os.write(_STDERR, _notice(number, requests.asked).encode())
        if not requests.asked:
            raise KeyboardInterrupt

    previous: dict[int, Any] = {number: signal.getsignal(number) for number in _heard()}
    for number in previous:
        signal.signal(number, request)
    try:
        yield requests
    except KeyboardInterrupt:
        if requests.requested is None:
            raise
        is_late = requests.requested is ExitCode.STOPPED_EARLY
        message = "the time of --max-time was over before training began" if is_late else "interrupted"
        raise Stopped(message, requests.requested, hint=hint) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
