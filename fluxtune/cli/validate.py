"""`fluxtune validate`: check a folder of pictures and captions, and say what is wrong with it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fluxtune.cli.findings import write_report
from fluxtune.cli.options import Base, ConfigFile, Json, Preset, Sets, given, setting_flag
from fluxtune.cli.render import sink
from fluxtune.config.layers import resolve
from fluxtune.environment import quiet_libraries
from fluxtune.errors import ExitCode, UsageError
from fluxtune.events import Event, Finding, Result


def validate(
    folders: Annotated[
        list[str] | None,
        typer.Argument(metavar="FOLDER...", help="Folders of pictures with captions beside them.", show_default=False),
    ] = None,
    preset: Preset = None,
    config_file: ConfigFile = None,
    sets: Sets = None,
    base: Base = None,
    trigger: Annotated[str | None, setting_flag("dataset.trigger", "--trigger", "-t", metavar="WORD")] = None,
    resolution: Annotated[
        list[str] | None, setting_flag("dataset.resolution", "--resolution", metavar="PIXELS")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 9 where there are warnings.")] = False,
    as_json: Json = False,
) -> None:
    """Read every picture and every caption, and report what training would suffer from.

    Errors give exit code 3; nothing is changed.

    \b
    Examples:
      fluxtune validate photos
      fluxtune validate photos --preset 24gb --trigger zorvex
      fluxtune validate photos --strict --json > report.jsonl
    """
    flags = given(
        {
            "model.base": ("--base", base),
            "dataset.trigger": ("--trigger", trigger),
            "dataset.resolution": ("--resolution", resolution),
        }
    )
    if folders:
        flags["dataset.folders"] = ("FOLDER", [{"path": folder} for folder in folders])
    config = resolve(
        preset=preset, config_file=config_file, flags=flags, sets=sets or [], working_folder=Path.cwd()
    ).config
    if not config.dataset.folders:
        raise UsageError(
            "no pictures to check: wanted a FOLDER, or [[dataset.folders]] in your settings",
            where="fluxtune validate",
            hint="fluxtune validate photos",
        )
    with sink(as_json) as on_event:
        quiet_libraries()
        from fluxtune.dataset.validation import validate as validate_data
        from fluxtune.training.tokens import limits_at_hand

        def emit(event: Event) -> None:
            # People get the findings sorted, at the end.
            if as_json or not isinstance(event, Finding):
                on_event(event)

        limits, side_multiple = limits_at_hand(config.model)
        report = validate_data(config, limits, side_multiple, emit)
        if as_json:
            on_event(Result("validate", report.as_data()))
    if not as_json:
        write_report(report, sys.stdout)
    if report.count("error"):
        raise typer.Exit(ExitCode.DATA)
    if strict and report.count("warning"):
        raise typer.Exit(ExitCode.STRICT)
