"""``--max-time``: how it is written, and when a run must stop so that it has saved by then."""

from __future__ import annotations

import re
import time

from fluxtune.errors import UsageError
from fluxtune.events import Checkpoint, Event, Step

_FORM = re.compile(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?|([\d.]+)", re.ASCII)
_UNITS = (3600, 60, 1, 1)
_LONGEST = 365 * 24 * 3600.0
_UNKNOWN_SAVE = 10.0
"""Seconds left for saving before it was seen how long that takes; of a short limit a fiftieth."""


def seconds_of(text: str) -> float:
    """``2h``, ``90m``, ``1h30m``, ``45s`` or plain seconds.

    Raises:
        UsageError: it is none of these, no time at all, or longer than a year.
    """
    parts = _FORM.fullmatch(text.strip().lower())
    try:
        total = sum(float(part or 0) * unit for part, unit in zip(parts.groups(), _UNITS, strict=True)) if parts else 0
    except ValueError:  # 1.2.3
        total = 0
    if not 0 < total <= _LONGEST:
        raise UsageError(
            f"{text!r} is no time: wanted hours, minutes and seconds, up to a year",
            where="--max-time",
            hint="for instance --max-time 2h, 90m, 1h30m, 45s or 5400",
        )
    return total


class TimeLimit:
    """How long this process may take, counted from its own start.

    What is still to be done when the time comes is learned from the events of the run: another step, with the previews
    between it and the next; then a checkpoint, which may have to wait for one that is being written.
    """

    def __init__(self, seconds: float, started: float | None = None) -> None:
        """
        Args:
            seconds: the limit.
            started: when the process started, in seconds of ``time.time``.
        """
        age = time.time() - (_process_started() if started is None else started)
        self._end = time.monotonic() - age + seconds
        self._last_step: float | None = None
        self._of_a_step = 0.0
        self._of_writing: float | None = None
        self._unknown_save = min(_UNKNOWN_SAVE, seconds / 50)

    def sees(self, event: Event) -> None:
        """Learn from an event of the run."""
        if isinstance(event, Step):
            now = time.monotonic()
            if self._last_step is not None:
                self._of_a_step = max(self._of_a_step, now - self._last_step)
            self._last_step = now
        elif isinstance(event, Checkpoint) and event.seconds:
            self._of_writing = max(self._of_writing or 0.0, event.seconds)

    def is_near(self) -> bool:
        """Whether another step and a checkpoint may not be done in time."""
        saving = self._unknown_save if self._of_writing is None else 2 * self._of_writing
        return time.monotonic() + self._of_a_step + saving >= self._end


def _process_started() -> float:
    import psutil

    return psutil.Process().create_time()
