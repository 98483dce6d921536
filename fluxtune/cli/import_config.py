"""`fluxtune import config`: the settings of another trainer as ours."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fluxtune.cli.options import Json
from fluxtune.cli.render import sink, write_line
from fluxtune.errors import ExitCode, UsageError
from fluxtune.events import Result
from fluxtune.sentences import printable

if TYPE_CHECKING:
    from fluxtune.handover.taking_over import TakenOver

_HELP = """Take over from other programs.

\b
Examples:
  fluxtune import config my_flux_lora.yaml
  fluxtune train --config my_flux_lora.toml --dry-run
"""
app = typer.Typer(name="import", help=_HELP, rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def _import(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(ExitCode.USAGE)


@app.command("config")
def config(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="Settings of ai-toolkit (YAML), SimpleTuner (JSON, TOML, env), kohya's sd-scripts (TOML, or a script "
            "that starts it), OneTrainer (JSON), or a script that starts diffusers' train_dreambooth_lora_flux.py.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The TOML to write; by default NAME.toml of this folder."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a TOML of ours from the settings of another trainer; whose they are is seen from what stands in them.

    Each setting has its line beside it. What could not be taken over is listed, with its line, and stands at the top.

    \b
    Examples:
      fluxtune import config my_flux_lora.yaml
      fluxtune import config train_dog.sh --output dog.toml
      fluxtune train --config dog.toml --dry-run
    """
    if file is None:
        raise UsageError(
            "no file is given", where="fluxtune import config", hint="fluxtune import config my_flux_lora.yaml"
        )
    target = output or Path(f"{file.stem.lstrip('.') or 'imported'}.toml")
    if target.exists() and file.exists() and target.samefile(file):
        target = Path(f"{file.stem}-fluxtune.toml") if output is None else target
    with sink(as_json) as on_event:
        from fluxtune.dataset.findings import found_in_description
        from fluxtune.handover.taking_over import take_over, write_settings

        taken = take_over(file, str(file))
        write_settings(taken, target, str(file))
        for finding in map(found_in_description, taken.remarks):
            on_event(replace(finding, hint="docs/moving.md says what becomes what") if finding.hint else finding)
        if as_json:
            on_event(Result("import config", _as_data(taken, target)))
    if not as_json:
        for line in _lines(taken, target):
            write_line(sys.stderr, printable(line))
        write_line(sys.stdout, printable(str(target)))


def _lines(taken: TakenOver, target: Path) -> Iterator[str]:
    lost = sum(remark.severity == "warning" for remark in taken.remarks)
    settings = len(taken.values)
    yield f"{taken.trainer}: {settings} settings and {len(taken.config.dataset.folders)} folders taken over, {lost} not"
    yield f"to see what comes of it: fluxtune train --config {target} --dry-run"


def _as_data(taken: TakenOver, target: Path) -> dict[str, object]:
    return {
        "file": str(target),
        "trainer": taken.trainer,
        "settings": taken.values,
        "origins": taken.origins,
        "folders": [folder.model_dump() for folder in taken.config.dataset.folders],
        "remarks": [vars(remark) for remark in taken.remarks],
    }
