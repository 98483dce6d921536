"""`fluxtune doctor`: what is wrong here, and the command that mends it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import typer

from fluxtune.cli.options import Base, Json
from fluxtune.cli.render import is_terminal, sink, write_line
from fluxtune.cli.train import RUNS
from fluxtune.config.settings import field_of
from fluxtune.errors import ExitCode
from fluxtune.events import Event, Finding, Result
from fluxtune.sentences import printable

if TYPE_CHECKING:
    from fluxtune.doctor.examination import Diagnosis

_STYLES = {"ok": "green", "note": "cyan", "warning": "bold yellow", "error": "bold red"}


def doctor(
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Look at card, driver, torch, libraries, memory, disks and hub, and say what mends what is wrong.

    Libraries are tried, not only looked up. Errors give exit code 2; nothing is changed.

    \b
    Examples:
      fluxtune doctor
      fluxtune doctor --base black-forest-labs/FLUX.1-schnell
      fluxtune doctor --json > doctor.jsonl
    """
    from fluxtune.doctor.examination import examine

    wanted = field_of("model.base").get_default() if base is None else base
    with sink(as_json) as on_event:

        def without_findings(event: Event) -> None:
            if not isinstance(event, Finding):
                on_event(event)

        # People get the findings as a table, at the end.
        diagnosis = examine(wanted, Path.cwd() / RUNS, on_event if as_json else without_findings)
        if as_json:
            on_event(Result("doctor", diagnosis.as_data()))
    if not as_json:
        _write(diagnosis, sys.stdout)
    if diagnosis.count("error"):
        raise typer.Exit(ExitCode.USAGE)


def _write(diagnosis: Diagnosis, stream: TextIO) -> None:
    """A table of what was seen, and below it the mends, each on a line of its own, so that it can be copied whole."""
    if is_terminal(stream):
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(file=stream)
        table = Table(box=None, show_header=False, pad_edge=False)
        for finding in diagnosis.findings:
            style = _STYLES[finding.severity]
            table.add_row(Text(finding.severity, style=style), Text(finding.check), Text(_seen(finding)))
        console.print(table)
        for text, style in _mends(diagnosis):
            console.print(Text(text, style=style), soft_wrap=True, highlight=False)
        return
    for finding in diagnosis.findings:
        write_line(stream, f"{finding.severity}: {finding.check}: {_seen(finding)}")
    for text, _ in _mends(diagnosis):
        write_line(stream, text)


def _seen(finding: Finding) -> str:
    return printable(f"{finding.message} ({finding.where})" if finding.where else finding.message)


def _mends(diagnosis: Diagnosis) -> Iterator[tuple[str, str]]:
    """(line, style): what helps, errors first, and the verdict."""
    for severity in ("error", "warning", "note"):
        for finding in diagnosis.findings:
            if finding.severity == severity and finding.hint:
                yield "", ""
                yield f"{finding.check}:", _STYLES[severity]
                yield f"  {printable(finding.hint)}", ""
    errors, warnings = diagnosis.count("error"), diagnosis.count("warning")
    yield "", ""
    if errors:
        yield (
            f"{errors} error{'' if errors == 1 else 's'}: mend from the top, then run `fluxtune doctor` again",
            "bold red",
        )
    elif warnings:
        yield f"nothing is broken; {warnings} warning{'' if warnings == 1 else 's'}", "bold yellow"
    else:
        yield "all is well", "bold green"
