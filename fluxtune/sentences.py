"""What people read of events: the same sentences at a terminal, in a log, and in a run's ``log.txt``.

Names and captions come from files and models: control characters in them are shown, not obeyed.
"""

from __future__ import annotations

from fluxtune import events
from fluxtune.errors import ExitCode
from fluxtune.redaction import without_tokens

_STOPS = (ExitCode.STOPPED_EARLY, ExitCode.INTERRUPTED, ExitCode.TERMINATED)


def printable(text: str) -> str:
    """Text from files and models as a terminal may show it, on one line: control characters become visible escapes."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def printable_lines(text: str) -> str:
    """As `printable`, with the line breaks that are there, and without tokens."""
    return "\n".join(map(printable, without_tokens(text).split("\n")))


def sentence(event: events.Event) -> str | None:
    """An event as one line for people; none for those that only programs read."""
    match event:
        case events.RunStarted():
            text = printable(f"run {event.run}: {event.base}, {event.steps} steps")
        case events.Phase():
            text = printable(f"{event.name}: {event.detail}" if event.detail else event.name)
        case events.Progress():
            text = f"{event.task}: {progress_figures(event)}"
        case events.Step():
            text = f"step {step_figures(event)}"
        case events.Preview():
            text = printable(f"preview at step {event.step}: {event.path}")
        case events.Picture():
            text = printable(f"{'grid' if event.seed is None else 'picture'}: {event.path}")
        case events.Checkpoint():
            text = printable(f"checkpoint at step {event.step}: {event.path}")
        case events.Resumed():
            text = printable(f"resumed at step {event.step} from {event.path}")
        case events.RolledBack():
            text = f"back at step {event.step}, with {event.learning_rate_factor:g} times the learning rate"
        case events.Warning():
            text = _with_place("warning", event)
        case events.Finding():
            text = _with_place(event.severity, event)
        case events.Caption():
            text = printable(f"{event.picture}: {event.caption}")
        case events.Plan():
            text = f"plan: {event.summary}"
        case events.Result() | events.Error():
            return None
    return printable_lines(text)


def step_figures(event: events.Step) -> str:
    """``120/1500  loss 0.4312  lr 1.0e-04  3.2 steps/s  7:10 left  2.1 GiB``"""
    return (
        f"{event.step}/{event.total}  loss {event.loss:.4f}  lr {event.learning_rate:.1e}  "
        f"{_rate(event.rate, 'steps')}  {clock(event.seconds_left)} left  {event.memory:.1f} GiB"
        + (f"  {event.skipped} skipped" if event.skipped else "")
    )


def progress_figures(event: events.Progress) -> str:
    """``3/12 images  1.5 images/s  0:06 left``; of finished work, what was done; bytes as GB."""
    if event.unit == "B":
        figures = [f"{event.done / 1e9:.2f}/{event.total / 1e9:.2f} GB"]
        rate = f"{(event.rate or 0) / 1e6:.1f} MB/s"
    else:
        figures = [f"{event.done}/{event.total} {event.unit}"]
        rate = _rate(event.rate or 0, event.unit)
    if event.done < event.total:
        figures += [rate] if event.rate is not None else []
        figures += [f"{clock(event.seconds_left)} left"] if event.seconds_left is not None else []
    return "  ".join(figures)


def counted(number: int, noun: str) -> str:
    """``1 picture``, ``3 pictures``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def ending(event: events.Error, between: str = "\n") -> str:
    """What a failure says, with the hint of each of its problems.

    Args:
        between: stands before each hint; two problems have an empty line between them.
    """
    label = "stopped" if event.code in _STOPS else "error"
    told = []
    for problem in event.problems:
        place = f"{printable(problem['where'])}: " if problem["where"] else ""
        advice = f"{between}hint: {problem['hint']}" if problem["hint"] else ""
        told.append(f"{label}: {place}{problem['message']}{advice}")
    return printable_lines("\n\n".join(told))


def log_lines(event: events.Event) -> list[str]:
    """An event as a log has it: as at the terminal, and the end of the work too."""
    match event:
        case events.Error():
            text: str | None = ending(event)
        case events.Result():
            text = printable(f"result: {event.data['file']}") if "file" in event.data else None
        case _:
            text = sentence(event)
    return [line for line in (text or "").split("\n") if line]


def _with_place(label: str, event: events.Warning | events.Finding) -> str:
    place = f"{printable(event.where)}: " if event.where else ""
    advice = f"\nhint: {printable(event.hint)}" if event.hint else ""
    return f"{label}: {place}{printable(event.message)}{advice}"


def _rate(rate: float, unit: str) -> str:
    """``3.2 steps/s``, and what takes longer as ``12.5 s a step``."""
    if rate <= 0:
        return f"- {unit}/s"
    return f"{rate:.1f} {unit}/s" if rate >= 1 else f"{1 / rate:.1f} s/{unit.removesuffix('s')}"


def clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
