"""`fluxtune train`: resolve the settings, name the run folder, train."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Annotated

import typer

from fluxtune.cli.explain import explain
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
    setting_flag,
)
from fluxtune.cli.plan_table import show_plan
from fluxtune.cli.render import sink, write_result
from fluxtune.cli.signals import stop_requests
from fluxtune.cli.time_limit import TimeLimit, seconds_of
from fluxtune.config.documents import read_layer
from fluxtune.config.layers import EMBEDDED_PREFIX, Resolved, resolve
from fluxtune.config.schema import Config
from fluxtune.config.settings import values_of
from fluxtune.environment.device import quiet_libraries
from fluxtune.environment.launch import place
from fluxtune.errors import OutOfMemoryError, Refusal, UsageError
from fluxtune.events import Event, Plan, RunStarted
from fluxtune.runs import Run, latest_run
from fluxtune.training.resuming import require_resumable, settings_of

RUNS = Path("runs")


def train(
    folder: Annotated[
        str | None,
        typer.Argument(
            metavar="FOLDER|FILE",
            help="Folder of pictures with .txt captions beside them, or a file of kohya's trainers, ai-toolkit, "
            "SimpleTuner or OneTrainer that describes a data set; --preset nano has a demo set of its own.",
            show_default=False,
        ),
    ] = None,
    preset: Preset = None,
    config_file: ConfigFile = None,
    sets: Sets = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="RUN", help="The run folder to make; by default runs/NAME."),
    ] = None,
    name: Name = None,
    base: Base = None,
    trigger: Trigger = None,
    class_word: ClassWord = None,
    resolution: Resolution = None,
    steps: Steps = None,
    rank: Rank = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    vram: Annotated[str | None, setting_flag("memory.budget", "--vram", metavar="GIB")] = None,
    seed: Seed = None,
    init_from: Annotated[str | None, setting_flag("lora.init_from", "--init-from", metavar="FILE|RUN")] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="RUN|latest",
            help="Go on with a run from its last whole checkpoint, with its own settings but for those that you give; "
            "what may not change is told.",
        ),
    ] = None,
    accept: Annotated[
        list[Refusal] | None,
        typer.Option(
            "--accept",
            metavar="data|memory|changed-data",
            help="Train in spite of what would be refused; data: pictures and captions with errors, without those "
            "that cannot be read; memory: more memory than the card has; changed-data: with --resume, other pictures, "
            "captions or settings of the data set than before.",
        ),
    ] = None,
    max_time: Annotated[
        str | None,
        typer.Option(
            "--max-time",
            metavar="TIME",
            help="Save and stop before so much time has passed since the start, with exit code 75: 2h, 1h30m, 45s.",
        ),
    ] = None,
    explain_only: Annotated[
        bool, typer.Option("--explain", help="Show every setting, its value and where that comes from; train nothing.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything, plan the memory and say what the run would take; load no weights, train nothing.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Teach FLUX what a folder of pictures shows, as a LoRA.

    Settings come in layers: defaults, then --preset, then your TOML file, then flags and --set.

    \b
    Examples:
      fluxtune train --preset nano
      fluxtune train photos --preset 24gb --trigger zorvex --class-word dog
      fluxtune train photos --preset 12gb --set lora.alpha=8 --explain
      fluxtune train photos --preset 16gb --vram 15 --dry-run
      fluxtune train --resume latest --steps 2000
      fluxtune train --resume latest --max-time 2h
    """
    if not place().is_main:
        if not (explain_only or dry_run):
            _work_along()
        return
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
            "memory.budget": ("--vram", vram),
            "training.seed": ("--seed", seed),
            "lora.init_from": ("--init-from", init_from),
        }
    )
    if folder is not None:
        flags["dataset.folders"] = ("FOLDER", [{"path": folder}])
    if dry_run:
        _refuse_a_dry_resume(resume)
    limit = None if max_time is None else TimeLimit(seconds_of(max_time))
    if resume is not None:
        if output is not None:
            raise UsageError(
                "--resume writes into the run's own folder", where="--output", hint="leave one of them out"
            )
        run = latest_run(RUNS) if resume == "latest" else Path(resume)
        resolved = _resolve_again(run, preset, config_file, flags, sets or [])
    else:
        run = None
        resolved = resolve(
            preset=preset, config_file=config_file, flags=flags, sets=sets or [], working_folder=Path.cwd()
        )
    if explain_only:
        explain(resolved, as_json)
        return
    _require_pictures(resolved.config)
    if dry_run:
        _dry_run(resolved, as_json, accept or [])
        return
    output = run or output or _free_run_folder(resolved.config, preset, folder)
    file = _run(resolved, output, run, as_json, accept or [], limit)
    if not as_json:
        write_result(str(file))


def _run(
    resolved: Resolved,
    output: Path,
    resume: Path | None,
    as_json: bool,
    accept: list[Refusal],
    limit: TimeLimit | None,
) -> Path:
    with sink(as_json) as on_event, stop_requests(limit=limit) as should_stop:
        quiet_libraries()
        from fluxtune.captioning.missing import caption_bare
        from fluxtune.dataset.findings import found_in_description
        from fluxtune.flux.libraries import set_libraries_aside
        from fluxtune.training.run import train as train_run

        def seen(event: Event) -> None:
            on_event(event)
            if isinstance(event, RunStarted):  # nothing refuses the run any more, and no model is loaded yet
                set_libraries_aside()

        for finding in map(found_in_description, resolved.remarks):
            on_event(finding)
        result = train_run(
            resolved.config,
            output=output,
            origins=resolved.origins,
            resume=resume,
            on_event=should_stop.interrupting(seen),
            should_stop=should_stop,
            accept=accept,
            caption_bare=caption_bare,
        )
    return result.file


def _work_along() -> None:
    with stop_requests(silently=True) as should_stop:
        quiet_libraries()
        from fluxtune.flux.libraries import set_libraries_aside
        from fluxtune.training.worker import work_along

        set_libraries_aside()
        work_along(should_stop)


def _dry_run(resolved: Resolved, as_json: bool, accept: list[Refusal]) -> None:
    plans: list[Plan] = []
    with sink(as_json) as on_event, stop_requests() as should_stop:
        quiet_libraries()
        from fluxtune.dataset.findings import found_in_description
        from fluxtune.training.dry_run import dry_run

        def seen(event: Event) -> None:
            if isinstance(event, Plan):
                plans.append(event)
            on_event(event)

        for finding in map(found_in_description, resolved.remarks):
            seen(finding)
        try:
            data = dry_run(resolved.config, should_stop.interrupting(seen), accept)
        except OutOfMemoryError:
            if plans and not as_json:
                show_plan(plans[-1], None)
            raise
    if not as_json:
        show_plan(plans[-1], data)


def _refuse_a_dry_resume(resume: str | None) -> None:
    if resume is not None:
        raise UsageError(
            "--dry-run foretells a new run; it cannot go with --resume",
            where="--dry-run",
            hint="leave one of them out",
        )


def _resolve_again(
    run: Path, preset: str | None, config_file: Path | None, flags: dict[str, tuple[str, object]], sets: list[str]
) -> Resolved:
    """The settings of a run, with what is given now above them; what stays as it was keeps its first origin.

    Raises:
        FluxtuneError: the run cannot go on with them, as ``require_resumable`` says.
    """
    was = settings_of(run)
    file = run / "config.toml"
    resolved = resolve(
        preset=preset,
        config_file=config_file,
        flags=flags,
        sets=sets,
        working_folder=Path.cwd(),
        lowest=read_layer(file, str(file)),
        project_file=False,
    )
    before, now = values_of(was.config), values_of(resolved.config)
    origins = {key: was.origins[key] if before[key] == now[key] else origin for key, origin in resolved.origins.items()}
    require_resumable(Run.open(run), was.config, resolved.config, origins)
    return replace(resolved, origins=origins)


def _require_pictures(config: Config) -> None:
    if not config.dataset.folders:
        raise UsageError(
            "no pictures to learn from: wanted a FOLDER, or [[dataset.folders]] in your settings",
            where="fluxtune train",
            hint="fluxtune train photos --preset 24gb; or, to see it work on a demo set, fluxtune train --preset nano",
        )


def _free_run_folder(config: Config, preset: str | None, folder: str | None = None) -> Path:
    """`runs/NAME`, or the next of `runs/NAME-2`, `runs/NAME-3`... that does not exist."""
    pictures = config.dataset.folders[0].path
    if folder is not None and Path(folder).is_dir():
        pictures = os.path.abspath(folder)  # its own description may name others
    is_demo = pictures.startswith(EMBEDDED_PREFIX)
    stem = config.name or (Path(preset or config.model.base).stem if is_demo else Path(pictures).name)
    candidates = chain([stem], (f"{stem}-{number}" for number in count(2)))
    return next(RUNS / candidate for candidate in candidates if not (RUNS / candidate).exists())
