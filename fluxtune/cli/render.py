"""What a command shows: events and errors, for a person at a terminal, for a log, or as JSON lines for a program.

Results that can be piped go to stdout, everything else to stderr. With ``--json`` stdout carries JSON lines and
nothing else.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from fluxtune import events
from fluxtune.cli.streams import Lasting, write_line
from fluxtune.errors import FluxtuneError
from fluxtune.sentences import ending, printable, printable_lines, progress_figures, sentence, step_figures

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_INTERVAL = 10.0
"""Seconds between two lines of the same progress where there is no terminal."""

_STYLES = {"error": "bold red", "stopped": "bold yellow", "warning": "bold yellow", "hint": "cyan", "note": "cyan"}


@contextmanager
def sink(as_json: bool, bars: bool = True) -> Iterator[events.Sink]:
    """Where a command's events go: JSON lines on stdout, or stderr: rich on a terminal, else plain lines.

    Args:
        bars: whether progress may be drawn, which nobody can type into.
    """
    if as_json:
        yield json_lines(sys.stdout)
    elif bars and is_terminal(sys.stderr):
        with terminal(_console()) as emit:
            yield emit
    else:
        yield PlainLines(sys.stderr)


def json_lines(stream: TextIO) -> events.Sink:
    """A sink that writes each event as one line of JSON."""
    return lambda event: write_line(stream, json.dumps(events.as_record(event)))


def write_result(text: str) -> None:
    """A result on stdout: exactly as it is where another program reads it, and such that no terminal obeys it."""
    write_line(sys.stdout, printable(text) if is_terminal(sys.stdout) else text)


def report(error: FluxtuneError, as_json: bool) -> None:
    """Show a failure: as the last JSON line on stdout, or on stderr with its hint after a blank line."""
    if as_json:
        json_lines(sys.stdout)(events.Error.of(error))
        return
    _say(ending(events.Error.of(error), "\n\n"))


class PlainLines:
    """A sink for logs: one line an event, of progress one now and then, never a control character."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream
        self.clock = clock
        self.last_shown: dict[str, float] = {}

    def __call__(self, event: events.Event) -> None:
        text = sentence(event)
        if text is not None and self._is_due(event):
            write_line(self.stream, text)

    def _is_due(self, event: events.Event) -> bool:
        """Whether enough time has passed; the first and the last of a series always show."""
        match event:
            case events.Step():
                series, finished = "step", event.step == event.total
            case events.Progress():
                series, finished = event.task, event.done == event.total
            case _:
                return True
        now = self.clock()
        if not finished and now - self.last_shown.get(series, -PLAIN_INTERVAL) < PLAIN_INTERVAL:
            return False
        self.last_shown[series] = now
        return True


@contextmanager
def terminal(console: Console) -> Iterator[events.Sink]:
    """A sink for a terminal: lines above, and a progress bar for what is under way."""
    from rich.progress import BarColumn, Progress, TaskID, TextColumn

    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[figures]}", markup=False),
        console=console,
        refresh_per_second=4,
        transient=True,
    )
    open_bars: dict[str, TaskID] = {}

    def advance(name: str, done: int, total: int, figures: str) -> None:
        name, figures = printable(name), printable(figures)
        if name not in open_bars:
            open_bars[name] = bars.add_task(name, total=total, figures=figures)
        bars.update(open_bars[name], completed=done, total=total, figures=figures)

    def close(name: str) -> None:
        bars.remove_task(open_bars.pop(name))

    def emit(event: events.Event) -> None:
        match event:
            case events.Step() if event.step < event.total:
                advance("step", event.step, event.total, step_figures(event))
                return
            case events.Step() if "step" in open_bars:
                close("step")
            case events.Progress() if event.done < event.total:
                advance(event.task, event.done, event.total, progress_figures(event))
                return
            case events.Progress() if event.task in open_bars:
                close(event.task)
            case events.Phase():
                for name in list(open_bars):
                    close(name)
        if text := sentence(event):
            _print_labelled(console, text, bold_label=isinstance(event, events.Phase))

    with bars:
        yield emit


def _say(text: str) -> None:
    """Show text on stderr, its labels coloured on a terminal."""
    if is_terminal(sys.stderr):
        _print_labelled(_console(), printable_lines(text))
    else:
        write_line(sys.stderr, printable_lines(text))


def _print_labelled(console: Console, text: str, bold_label: bool = False) -> None:
    from rich.text import Text

    for line in text.split("\n"):
        styled = Text(line)
        label = line.partition(":")[0]
        style = "bold" if bold_label else _STYLES.get(label)
        if style:
            styled.stylize(style, 0, len(label) + 1)
        console.print(styled, soft_wrap=True, highlight=False)


def _console() -> Console:
    from rich.console import Console

    return Console(file=Lasting(sys.stderr))  # type: ignore[arg-type]


def is_terminal(stream: TextIO) -> bool:
    """Whether a person sees the stream in a terminal that knows colours."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"
