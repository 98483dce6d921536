"""How the report of `fluxtune validate` reads: findings by severity and check, each with its file and its mend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from fluxtune.cli.render import is_terminal, write_line
from fluxtune.dataset.findings import CHECKS, SEVERITIES, by_check, name_of
from fluxtune.events import Finding
from fluxtune.sentences import printable

if TYPE_CHECKING:
    from fluxtune.dataset.mending import Mend
    from fluxtune.dataset.validation import Report

SHOWN = 10
"""Findings of one check that are listed; the rest is counted."""

_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}


def write_report(report: Report, stream: TextIO) -> None:
    """The whole report, coloured on a terminal."""
    _write(_lines(report), stream)


def write_mends(mends: Sequence[Mend], mended: Report, stream: TextIO) -> None:
    """What was done in the repaired copy, and what is left to say of it."""
    _write(_lines_of_mends(mends, mended), stream)


def _write(lines: Iterator[tuple[str, str]], stream: TextIO) -> None:
    if not is_terminal(stream):
        for text, _ in lines:
            write_line(stream, printable(text))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream)
    for text, style in lines:
        console.print(Text(printable(text), style=style), soft_wrap=True, highlight=False)


def _lines(report: Report) -> Iterator[tuple[str, str]]:
    """(line, style) from top to bottom."""
    read, files = len(report.pictures), len(report.survey.seen)
    at = " and ".join(f"{side} px" for side in report.resolution)
    yield f"{', '.join(report.folders)}: {read} of {files} pictures read, checked for training at {at}", "bold"
    groups = by_check(report.findings)
    for severity in SEVERITIES:
        of_this = {check: group for check, group in groups.items() if group[0].severity == severity}
        if of_this:
            yield "", ""
            yield f"{severity}s", _STYLES[severity]
        for check, group in of_this.items():
            yield from _of_check(check, group)
    yield "", ""
    yield _verdict(report)


def _lines_of_mends(mends: Sequence[Mend], mended: Report) -> Iterator[tuple[str, str]]:
    yield "", ""
    yield f"{', '.join(mended.folders)}: the repaired copy", "bold"
    for mend in mends:
        yield f"  {mend.target or mend.source}: {', '.join(mend.done)}", ""
    if not mends:
        yield "  nothing had to be repaired", ""
    yield _verdict(mended)


def _of_check(check: str, group: list[Finding]) -> Iterator[tuple[str, str]]:
    if group[0].severity == "note":
        for finding in group:
            place = f"{name_of(finding)}: " if name_of(finding) else ""
            yield f"  {place}{finding.message}", ""
        return
    yield f"  {CHECKS[check].count(len(group))}", "bold"
    for finding in group[:SHOWN]:
        place = f"{name_of(finding)}: " if name_of(finding) else ""
        yield f"    {place}{finding.message}", ""
    if len(group) > SHOWN:
        yield f"    ... and {len(group) - SHOWN} more", ""
    for hint in dict.fromkeys(finding.hint for finding in group[:SHOWN] if finding.hint):
        yield f"    hint: {hint}", "cyan"


def _verdict(report: Report) -> tuple[str, str]:
    errors, warnings = report.count("error"), report.count("warning")
    counts = f"{errors} error{'' if errors == 1 else 's'}, {warnings} warning{'' if warnings == 1 else 's'}"
    if errors:
        return f"{counts}: `fluxtune train` would refuse this data set", _STYLES["error"]
    if report.wants_captions:
        return f"{counts}: `fluxtune train` wants the captions first", _STYLES["warning"]
    if warnings:
        return f"{counts}: it can be trained on", _STYLES["warning"]
    return "nothing is wrong with this data set", "bold green"
