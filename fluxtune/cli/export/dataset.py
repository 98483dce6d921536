"""`fluxtune export dataset`: a copy of a data set in the layout of another trainer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fluxtune.cli.options import ClassWord, ConfigFile, Json, Resolution, Sets, Trigger, given, require_data_alone
from fluxtune.cli.render import sink, write_line
from fluxtune.config.layers import Resolved, resolve
from fluxtune.environment.device import quiet_libraries
from fluxtune.errors import Refusal, UsageError
from fluxtune.events import Result
from fluxtune.exporting.layouts import Layout
from fluxtune.sentences import printable

if TYPE_CHECKING:
    from fluxtune.exporting.dataset import Exported


def dataset(
    folders: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FOLDER|FILE...",
            help="Folders of pictures with captions beside them, or files of kohya's trainers, ai-toolkit, "
            "SimpleTuner or OneTrainer that describe data sets.",
            show_default=False,
        ),
    ] = None,
    layout: Annotated[
        Layout | None, typer.Option("--format", "-f", help="Whose convention to follow.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="The folder to make; it must not be there already."),
    ] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Hard links in place of copies of the pictures, where that is possible.")
    ] = False,
    config_file: ConfigFile = None,
    sets: Sets = None,
    trigger: Trigger = None,
    class_word: ClassWord = None,
    resolution: Resolution = None,
    accept: Annotated[
        list[Refusal] | None,
        typer.Option(
            "--accept",
            metavar="data",
            help="Export in spite of pictures and captions with errors, without those.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a copy of a data set in the layout of another trainer, with the file that describes it.

    Nothing is lost: what the layout cannot hold stands in a file beside that one, and is said.

    \b
    Examples:
      fluxtune export dataset photos --format kohya --output for-kohya
      fluxtune export dataset photos more --trigger zorvex --format ai-toolkit --output for-ai-toolkit
      fluxtune export dataset for-kohya/dataset_config.toml --format simpletuner --output for-simpletuner --link
    """
    if layout is None or output is None:
        missing = "--format" if layout is None else "--output"
        raise UsageError(
            f"{missing} is not given",
            where="fluxtune export dataset",
            hint=f"fluxtune export dataset photos --format {layout or Layout.KOHYA} --output {output or 'copy'}",
        )
    require_data_alone(accept or ())
    flags = given(
        {
            "dataset.trigger": ("--trigger", trigger),
            "dataset.class_word": ("--class-word", class_word),
            "dataset.resolution": ("--resolution", resolution),
        }
    )
    if folders:
        flags["dataset.folders"] = ("FOLDER", [{"path": folder} for folder in folders])
    resolved = resolve(preset=None, config_file=config_file, flags=flags, sets=sets or [], working_folder=Path.cwd())
    exported = _run(resolved, layout, output, link, bool(accept), as_json)
    if not as_json:
        for line in _lines(exported):
            write_line(sys.stdout, printable(line))


def _run(resolved: Resolved, layout: Layout, output: Path, link: bool, accept_errors: bool, as_json: bool) -> Exported:
    with sink(as_json) as on_event:
        quiet_libraries()
        from fluxtune.dataset.findings import found_in_description
        from fluxtune.exporting.dataset import export_dataset

        for finding in map(found_in_description, resolved.remarks):
            on_event(finding)
        exported = export_dataset(
            resolved.config.dataset, layout, output, on_event, link=link, accept_errors=accept_errors
        )
        if as_json:
            on_event(Result("export dataset", asdict(exported)))
    return exported


def _lines(exported: Exported) -> Iterator[str]:
    """What was made, for people."""
    linked = f" ({exported.linked} of them links)" if exported.linked else ""
    yield (
        f"{exported.destination}: {exported.pictures} pictures{linked}, {exported.captions} captions, "
        f"{exported.masks} masks, laid out for {exported.layout}"
    )
    for directory, source in exported.directories.items():
        yield f"  {directory}/ from {source}"
    for name, target in exported.renamed.items():
        yield f"  {name} became {target}"
    for name in exported.left_out:
        yield f"  left out: {name}"
    if exported.kept_beside:
        yield f"  {exported.layout} cannot hold {', '.join(exported.kept_beside)}: kept in {exported.beside}"
    for remark in exported.remarks:
        yield f"  {remark}"
    yield f"{exported.description} describes it"
