"""What a run would take, as a table: on a terminal with rich, else plain lines that can be piped."""

from __future__ import annotations

import sys
from typing import Any

from fluxtune.cli.render import is_terminal, write_line
from fluxtune.events import Plan
from fluxtune.sentences import clock, printable

_CATEGORIES = ("weights", "adapter", "optimizer", "gradients", "activations", "inputs", "temporaries")


def show_plan(plan: Plan, run: dict[str, Any] | None) -> None:
    """Write to stdout what each phase takes, what is decided, and what the run does.

    Args:
        run: what ``dry_run`` returned; None where the run does not fit.
    """
    heading = ["phase", "GiB", "reserved", *_CATEGORIES]
    rows = [
        [
            str(phase["phase"]),
            _gib(sum(phase["alive"].values())),
            _gib(phase["reserved"]),
            *(_gib(phase["alive"].get(category, 0)) for category in _CATEGORIES),
        ]
        for phase in plan.phases
    ]
    if is_terminal(sys.stdout):
        _rich(heading, rows, plan)
    else:
        widths = [max(len(row[column]) for row in [heading, *rows]) for column in range(len(heading))]
        for row in [heading, *rows]:
            cells = [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
            write_line(sys.stdout, "  ".join(cells))
    for line in _sentences(plan, run):
        write_line(sys.stdout, printable(line))


def _rich(heading: list[str], rows: list[list[str]], plan: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="memory by phase, in GiB", title_justify="left", title_style="bold")
    for column, name in enumerate(heading):
        table.add_column(name, justify="left" if column == 0 else "right")
    highest = max(plan.phases, key=lambda phase: sum(phase["alive"].values()))["phase"]
    for row in rows:
        table.add_row(*row, style="bold" if row[0] == highest else None)
    Console(file=sys.stdout).print(table)


def _sentences(plan: Plan, run: dict[str, Any] | None) -> list[str]:
    lines = [f"plan: {plan.summary}"]
    if plan.capacity is not None:
        verb = "fits" if plan.fits else "does not fit"
        lines.append(f"{verb}: {_gib(plan.reserved)} GiB reserved at most, {_gib(plan.capacity)} GiB to be had")
    if plan.system:
        held = ", ".join(f"{name} {_gib(size)}" for name, size in plan.system.items())
        lines.append(f"in system memory, GiB: {held}")
    lines.append(f"the backward pass computes {plan.recomputed:.0%} of the forward again")
    if run is not None:
        took = f", about {clock(run['seconds'])} at the pace of earlier runs here" if run["seconds"] else ""
        lines.append(f"{run['pictures']} pictures, {run['steps']} steps, {run['epochs']:g} epochs{took}")
    return lines


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
