"""`fluxtune export config`: a run for another trainer, settings and data set."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fluxtune.cli.options import (
    Base,
    BatchSize,
    ClassWord,
    ConfigFile,
    Json,
    LearningRate,
    Name,
    Preset,
    Rank,
    Resolution,
    Seed,
    Sets,
    Steps,
    Trigger,
    given,
    require_data_alone,
)
from fluxtune.cli.render import sink, write_line
from fluxtune.config.documents import read_layer
from fluxtune.config.layers import Resolved, resolve
from fluxtune.errors import Refusal, UsageError
from fluxtune.events import Result
from fluxtune.handover.targets import Target
from fluxtune.sentences import printable

if TYPE_CHECKING:
    from fluxtune.handover.handing_over import HandedOver, Loss


def config(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="FOLDER|FILE|RUN",
            help="Folder of pictures, a file that describes a data set, or a run, whose settings are taken.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[Target | None, typer.Option("--to", help="Whose settings to write.", show_default=False)] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="The folder to make; it must not be there already."),
    ] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Hard links in place of copies of the pictures, where that is possible.")
    ] = False,
    preset: Preset = None,
    config_file: ConfigFile = None,
    sets: Sets = None,
    name: Name = None,
    base: Base = None,
    trigger: Trigger = None,
    class_word: ClassWord = None,
    resolution: Resolution = None,
    steps: Steps = None,
    rank: Rank = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    accept: Annotated[
        list[Refusal] | None,
        typer.Option(
            "--accept", metavar="data", help="Export in spite of pictures and captions with errors, without those."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a run for another trainer: its settings, the data set as it wants it, and the command that starts it.

    What the trainer does not hold as it is here is listed, with what it does instead.

    \b
    Examples:
      fluxtune export config photos --preset 24gb --trigger zorvex --to ai-toolkit --output for-ai-toolkit
      fluxtune export config runs/my-dog --to sd-scripts --output for-kohya --link
      fluxtune export config --config my.toml --to onetrainer --output for-onetrainer
    """
    if to is None or output is None:
        missing = "--to" if to is None else "--output"
        hint = f"fluxtune export config photos --to {to or Target.AI_TOOLKIT} --output {output or 'there'}"
        raise UsageError(f"{missing} is not given", where="fluxtune export config", hint=hint)
    require_data_alone(accept or ())
    flags = given(
        {
            "name": ("--name", name),
            "model.base": ("--base", base),
            "dataset.trigger": ("--trigger", trigger),
            "dataset.class_word": ("--class-word", class_word),
            "dataset.resolution": ("--resolution", resolution),
            "training.steps": ("--steps", steps),
            "lora.rank": ("--rank", rank),
            "training.learning_rate": ("--learning-rate", learning_rate),
            "training.batch_size": ("--batch-size", batch_size),
            "training.seed": ("--seed", seed),
        }
    )
    handed = _run(_resolved(source, preset, config_file, flags, sets or []), to, output, link, bool(accept), as_json)
    if not as_json:
        for line in _lines(handed):
            write_line(sys.stderr, printable(line))
        write_line(sys.stdout, printable(handed.command))


def _resolved(
    source: str | None,
    preset: str | None,
    config_file: Path | None,
    flags: dict[str, tuple[str, object]],
    sets: list[str],
) -> Resolved:
    """The settings: those of a run, or as for `train`."""
    settings = None if source is None else Path(source) / "config.toml"
    is_run = settings is not None and settings.is_file() and settings.with_name("run.json").is_file()
    if source is not None and not is_run:
        flags["dataset.folders"] = ("FOLDER", [{"path": source}])
    return resolve(
        preset=preset,
        config_file=config_file,
        flags=flags,
        sets=sets,
        working_folder=Path.cwd(),
        lowest=read_layer(settings, str(settings)) if settings is not None and is_run else None,
        project_file=not is_run,
    )


def _run(resolved: Resolved, to: Target, output: Path, link: bool, accept_errors: bool, as_json: bool) -> HandedOver:
    with sink(as_json) as on_event:
        from fluxtune.dataset.findings import found_in_description
        from fluxtune.handover.handing_over import as_data, hand_over

        for finding in map(found_in_description, resolved.remarks):
            on_event(finding)
        handed = hand_over(resolved.config, to, output, on_event, link=link, accept_errors=accept_errors)
        if as_json:
            on_event(Result("export config", as_data(handed)))
    return handed


def _lines(handed: HandedOver) -> Iterator[str]:
    """What was made, for people."""
    yield f"{handed.destination}: {handed.pictures} pictures and the settings for {handed.trainer}: {handed.settings}"
    learned = [loss for loss in handed.losses if loss.learned]
    if learned:
        yield "what is learned differs by:"
        yield from _told(learned)
    if others := [loss for loss in handed.losses if not loss.learned]:
        yield "besides:"
        yield from _told(others)
    if handed.remarks:
        yield f"{handed.trainer} does otherwise:"
        yield from (f"  {remark}" for remark in handed.remarks)
    if handed.to_do:
        yield "before it starts:"
        yield from (f"  {each}" for each in handed.to_do)
    yield f"what starts it, where {handed.trainer} is installed:"


def _told(losses: Iterable[Loss]) -> Iterator[str]:
    """A line for each that becomes something else, and for those without a counterpart one for each reason."""
    missing = defaultdict(list)
    for loss in losses:
        if loss.becomes is not None:
            yield f"  {loss}"
        else:
            missing[loss.why].append(f"{loss.key} = {loss.shown_value}")
    for why, settings in missing.items():
        yield f"  {', '.join(settings)} {'has' if len(settings) == 1 else 'have'} no counterpart: {why}"
