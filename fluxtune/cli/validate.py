"""`fluxtune validate`: check a folder of pictures and captions, and say what is wrong with it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fluxtune.cli.findings import write_mends, write_report
from fluxtune.cli.options import Base, ConfigFile, Json, Preset, Resolution, Sets, Trigger, given
from fluxtune.cli.render import sink, write_line
from fluxtune.config.descriptions.reading import folders_of
from fluxtune.config.layers import Resolved, resolve
from fluxtune.config.schema import Config
from fluxtune.environment.device import quiet_libraries
from fluxtune.errors import ExitCode, UsageError
from fluxtune.events import Event, Finding, Result
from fluxtune.files import require_new_file
from fluxtune.sentences import printable

if TYPE_CHECKING:
    from fluxtune.dataset.validation import Report


def validate(
    folders: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FOLDER|FILE...",
            help="Folders of pictures with captions beside them, or files of kohya's trainers, ai-toolkit, "
            "SimpleTuner or OneTrainer that describe data sets.",
            show_default=False,
        ),
    ] = None,
    preset: Preset = None,
    config_file: ConfigFile = None,
    sets: Sets = None,
    base: Base = None,
    trigger: Trigger = None,
    resolution: Resolution = None,
    fix: Annotated[
        Path | None,
        typer.Option(
            "--fix",
            metavar="DESTINATION",
            help="Write a repaired copy there, and check that one; the original stays as it is.",
        ),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE.html",
            help="Write a page with every picture, its crop and its problems; any browser shows it.",
        ),
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
      fluxtune validate dataset_config.toml
      fluxtune validate photos --report photos.html
      fluxtune validate photos --fix photos-mended
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
    resolved = resolve(preset=preset, config_file=config_file, flags=flags, sets=sets or [], working_folder=Path.cwd())
    config = resolved.config
    if not config.dataset.folders:
        raise UsageError(
            "no pictures to check: wanted a FOLDER, or [[dataset.folders]] in your settings",
            where="fluxtune validate",
            hint="fluxtune validate photos",
        )
    report = _check(resolved, page, fix, as_json)
    if report.count("error"):
        raise typer.Exit(ExitCode.DATA)
    if strict and report.count("warning"):
        raise typer.Exit(ExitCode.STRICT)


def _check(resolved: Resolved, page: Path | None, fix: Path | None, as_json: bool) -> Report:
    """Checks the data, shows what was found, and returns the report; with ``fix`` that of the repaired copy."""
    with sink(as_json) as on_event:
        quiet_libraries()
        from fluxtune.dataset.findings import found_in_description
        from fluxtune.dataset.mending import mend, require_destination
        from fluxtune.dataset.validation import validate as validate_data
        from fluxtune.report.data_page import write_data_page
        from fluxtune.training.tokens import limits_at_hand

        def without_findings(event: Event) -> None:
            if not isinstance(event, Finding):
                on_event(event)

        config = resolved.config
        # To read the pictures of a large data set takes minutes.
        if page is not None:
            require_new_file(page)
        if fix is not None:
            require_destination(fix, [row.path for row in config.dataset.folders])
        limits, side_multiple = limits_at_hand(config.model)
        told = [found_in_description(remark) for remark in resolved.remarks]
        # People get the findings sorted, at the end.
        report = validate_data(config, limits, side_multiple, on_event if as_json else without_findings, told)
        result, mends, last = report.as_data(), [], report
        if fix is not None:
            mends = mend(report, fix, on_event, resolved.described)
            last = validate_data(_on_folder(config, fix), limits, side_multiple, without_findings)
            result |= {"mends": [asdict(each) for each in mends], "mended": last.as_data()}
        if page is not None:
            # Last, for it may go into the copy.
            write_data_page(report, page, config.dataset.background, on_event)
            result["page"] = str(page)
        if as_json:
            on_event(Result("validate", result))
    if not as_json:
        write_report(report, sys.stdout)
        if page is not None:
            write_line(sys.stdout, f"\n{printable(str(page))}: every picture with its crop and its problems")
        if fix is not None:
            write_mends(mends, last, sys.stdout)
    return last


def _on_folder(config: Config, folder: Path) -> Config:
    dataset = config.dataset.model_copy(update={"folders": folders_of(folder)})
    return config.model_copy(update={"dataset": dataset})
