"""A whole run: preflight, prepare, load, train, finish. ``train`` is what the command line and Python callers use."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from fluxtune.config.layers import to_toml
from fluxtune.config.resuming import changed_settings
from fluxtune.config.schema import Config
from fluxtune.config.settings import values_of
from fluxtune.dataset.pictures import CaptionBare
from fluxtune.errors import ExitCode, FluxtuneError, ProcessError, Refusal, Stopped, StorageError
from fluxtune.events import (
    Checkpoint,
    Error,
    Event,
    Phase,
    Result,
    Resumed,
    RolledBack,
    RunStarted,
    Sink,
    Step,
    Warning,
    as_record,
    ignore,
)
from fluxtune.flux.weights import DTYPES
from fluxtune.memory.shortage import fits_in_memory
from fluxtune.runs import Run, require_unused
from fluxtune.training.base_record import base_facts, opens_as_begun
from fluxtune.training.checkpoint import last_good_checkpoint, load_checkpoint
from fluxtune.training.data_record import AskCaptioner, as_recorded, compare_data, record_data
from fluxtune.training.health import Health
from fluxtune.training.load import load
from fluxtune.training.loop import train_steps
from fluxtune.training.outputs import Outputs
from fluxtune.training.pace import keep_pace
from fluxtune.training.preflight import Preflight, preflight
from fluxtune.training.prepare import prepare
from fluxtune.training.processes import Processes, dealt, joined, tell_shares
from fluxtune.training.relief import SMALLER, Relief, no_room
from fluxtune.training.resuming import (
    finished_result,
    of_the_data,
    require_resumable,
    settings_of,
    told_checkpoints,
    told_previews,
    warnings_of,
)
from fluxtune.training.saved_state import SavedState
from fluxtune.training.trackers import tracked
from fluxtune.training.worker import Task, take_part

_REFUSALS = (ExitCode.USAGE, ExitCode.DATA, ExitCode.MEMORY, ExitCode.BASE_MODEL, ExitCode.STORAGE)
"""Codes of failures before the first step that a user mends; of others the record is of use."""


@dataclass(frozen=True)
class TrainResult:
    """A finished run: its folder, the LoRA, and the optimizer steps done."""

    run: Path
    file: Path
    steps: int


def train(
    config: Config,
    *,
    output: Path,
    origins: dict[str, str] | None = None,
    resume: Path | None = None,
    on_event: Sink = ignore,
    should_stop: Callable[[], ExitCode | None] = lambda: None,
    accept: Collection[Refusal] = (),
    caption_bare: AskCaptioner | None = None,
) -> TrainResult:
    """Train a LoRA.

    Args:
        output: the run folder to make; with ``resume``, the same folder.
        origins: where each setting came from, for the record.
        resume: run folder to go on from, at its last whole checkpoint.
        should_stop: asked before every step; an exit code saves and stops. Also asked when a KeyboardInterrupt ends
            the run: with an exit code it becomes ``Stopped``.
        accept: what would be refused otherwise; ``data``: pictures and captions with errors, those that cannot be
            read being left out; ``memory``: more memory than the card has. With ``resume``, in addition to what the
            run was begun with; and ``changed-data``: pictures, captions or settings of ``[dataset]`` that are others.
        caption_bare: captions pictures that have no caption, for ``dataset.missing_captions = "caption"``; see
            ``captioning/missing.py``. With ``resume``, only pictures that the run has not recorded a caption of.

    Raises:
        FluxtuneError: whatever the user can mend; its ``exit_code`` says of which kind.
        Stopped: ``should_stop`` asked for it; the steps done are saved.
    """
    with joined() as processes:
        if not processes.is_main:
            task = take_part(processes, should_stop)
            return TrainResult(task.file.parent, task.file, task.ready.config.training.steps)
        told = _Early(on_event)
        ask = partial(caption_bare, config, told) if caption_bare else None
        if resume is not None:
            run = Run.open(resume)
            return _go_on(processes, run, config, origins or {}, told, should_stop, set(accept), ask)
        return _begin(processes, output, config, origins or {}, told, should_stop, set(accept), ask)


def _begin(
    processes: Processes,
    output: Path,
    config: Config,
    origins: dict[str, str],
    told: _Early,
    should_stop: Callable[[], ExitCode | None],
    accept: set[Refusal],
    ask: CaptionBare | None,
) -> TrainResult:
    """Everything that can refuse a new run, then the run."""
    # A wrong run folder is told before the base model downloads and the pictures are read.
    require_unused(output)
    config, dealt_out = dealt(config, processes.number)
    with fits_in_memory("this training", SMALLER):
        tell_shares(config, processes.number, told)
        ready = preflight(config, told, accept=accept, caption_bare=ask, free=processes.free)
    origins = {**origins, **dealt_out, **_planned(config, ready.config)}
    facts = {**ready.facts, "base": base_facts(ready.base)}
    run = Run.create(output, to_toml(ready.config), origins, facts, ready.accepted - {Refusal.CHANGED_DATA})
    with run.locked():
        return _train_in(processes, run, ready, origins, told, should_stop, resuming=False)


def _go_on(
    processes: Processes,
    run: Run,
    config: Config,
    origins: dict[str, str],
    told: _Early,
    should_stop: Callable[[], ExitCode | None],
    accept: set[Refusal],
    ask: CaptionBare | None,
) -> TrainResult:
    """Everything that can refuse to go on with a run, then the run."""
    if run.trouble is not None:
        told(run.trouble)
    begun = settings_of(run.folder)
    was, changed = begun.config, [each.key for each in changed_settings(begun.config, config)]
    origins = {**begun.origins, **dict.fromkeys(changed, "given"), **origins}
    require_resumable(run, was, config, origins)
    if result := finished_result(run, was, config):
        told(Phase("resume", f"this run is finished, all {config.training.steps} steps; --steps N adds some"))
        told(Result("train", result))
        return TrainResult(run.folder, Path(result["file"]), int(result["steps"]))
    with run.locked():
        has_trained = bool(run.checkpoints())
        accept |= {each for each in Refusal if each in run.state.accepted}
        settings = of_the_data(was, config)
        with fits_in_memory("this training", SMALLER):
            tell_shares(config, processes.number, told)
            ready = preflight(
                config,
                told,
                has_trained,
                accept,
                as_recorded(run.folder, told, ask),
                find_base=opens_as_begun(run.state.facts),
                compare=lambda usable: compare_data(run.folder, usable, config, settings, accept, told, has_trained),
                free=processes.free,
            )
        for warning in warnings_of(was, ready.config):
            told(warning)
        origins = {**origins, **_planned(config, ready.config)}
        return _train_in(processes, run, ready, origins, told, should_stop, resuming=True)


class _Early:
    """A sink that keeps what is told before there is a run to record it in."""

    def __init__(self, on_event: Sink) -> None:
        self.on_event = on_event
        self.kept: list[tuple[Event, dict[str, Any]]] = []

    def __call__(self, event: Event) -> None:
        self.kept.append((event, as_record(event)))
        self.on_event(event)


def _planned(before: Config, after: Config) -> dict[str, str]:
    """The settings that the plan decided, and the commit of a hub model, with that as their origin."""
    was, is_now = values_of(before), values_of(after)
    found = {"model.revision": "the hub's commit of that time"}
    return {key: found.get(key, "the plan for this card") for key in is_now if was[key] != is_now[key]}


def _train_in(
    processes: Processes,
    run: Run,
    ready: Preflight,
    origins: dict[str, str],
    told: _Early,
    should_stop: Callable[[], ExitCode | None],
    resuming: bool,
) -> TrainResult:
    """The run, with all that happens to it in its record."""
    with (
        _recorded(run, resuming),
        _interruptions(run, should_stop),
        fits_in_memory("this training", SMALLER),
    ):
        for event, record in told.kept:
            if (trouble := run.append(event, record)) is not None:
                told.on_event(trouble)

        def report(event: Event) -> None:
            if (trouble := run.append(event)) is not None:
                told.on_event(trouble)
            told.on_event(event)

        with tracked(run, ready.config, report) as sink:
            return _phases(processes, run, ready, origins, sink, should_stop, resuming)


def _phases(
    processes: Processes,
    run: Run,
    ready: Preflight,
    origins: dict[str, str],
    on_event: Sink,
    should_stop: Callable[[], ExitCode | None],
    resuming: bool,
) -> TrainResult:
    """Prepare, load, train, finish."""
    started, config = time.time(), ready.config
    training = config.training
    on_event(RunStarted(str(run.folder), ready.base.name, training.steps, config.model_dump(mode="json")))
    if not resuming:
        record_data(run.folder, ready.pictures)
    checkpoint = _checkpoint_to_go_on_from(run, on_event) if resuming else None
    dtype = DTYPES[training.precision]
    prepared = prepare(config, ready.base, ready.pictures, ready.prompts, dtype, ready.device, on_event)
    loaded = load(config, ready.base, prepared, ready.device, on_event, goes_on=checkpoint is not None)
    outputs = Outputs(run, config, ready, prepared, loaded, started, on_event, should_stop)
    saved = SavedState(outputs, checkpoint is not None, on_event, processes.hand_out)
    first_step = _restore(run, checkpoint, outputs, on_event) if checkpoint is not None else 0
    outputs.require_space(first_step)
    if resuming:
        # Not earlier: a resume that is refused leaves the run, its settings and record of data as they were.
        run.go_on(to_toml(config), origins, ready.accepted)
        record_data(run.folder, ready.pictures, first_step)
        # Changed data is accepted once: from now on it is what the run has recorded.
        run.update(
            step=first_step,
            checkpoint=None if checkpoint is None else run.within(checkpoint),
            accepted=sorted(ready.accepted - {Refusal.CHANGED_DATA}),
        )
        outputs.tidy(first_step)
    processes.hand_out(Task(ready, checkpoint, run.result_path(outputs.name)).as_json())
    if outputs.previews_are_due(first_step):
        # Those before the first step; or those that a run was killed or stopped in.
        outputs.previews(first_step, made=told_previews(run, first_step) if resuming else set())
    layers = len(loaded.parameters) // 2
    on_event(Phase("train", f"{training.steps - first_step} steps, {layers} layers adapted"))
    clocked = _Clocked(on_event, first_step)
    health = Health(training, loaded.source.pictures, saved.restore, outputs.counters, on_event)
    relief = Relief(loaded.learner, config.memory, ready.plan, saved, clocked.has_stepped, should_stop, on_event)
    with outputs.finishing(), _saved_without_others(clocked, saved):
        step, asked = train_steps(
            training,
            loaded.learner,
            loaded.source,
            loaded.average,
            first_step,
            health,
            relief.make_room if processes.number == 1 else no_room,
            outputs.after_step,
            should_stop,
            clocked,
            processes,
        )
    if ready.plan is not None and clocked.rate and relief.memory == config.memory:
        keep_pace(ready.plan.work, ready.device, 1 / clocked.rate, processes.number)
    if asked is None and outputs.lacks_previews(step):
        asked = should_stop()
    if asked is not None:
        saved.save(step)
        raise Stopped(
            f"stopped after step {step} of {training.steps}; everything is saved", asked, hint=_how_to_go_on(run)
        )
    on_event(Phase("finish", "writing the LoRA and reading it back"))
    file, digest = outputs.write_result()
    on_event(
        Result(
            "train",
            {
                "run": str(run.folder),
                "file": str(file),
                "sha256": digest,
                "steps": step,
                "layers": layers,
                "seconds": round(time.time() - started, 1),
            },
        )
    )
    return TrainResult(run.folder, file, step)


def _restore(run: Run, checkpoint: Path, outputs: Outputs, on_event: Sink) -> int:
    """Take up the state of a checkpoint; returns the steps done."""
    loaded = outputs.loaded
    step, counters = load_checkpoint(checkpoint, loaded.parameters, loaded.learner.optimizer.optimizer, loaded.average)
    outputs.counters.update(counters)
    on_event(Resumed(step, str(checkpoint)))
    if step not in told_checkpoints(run):
        # The process was killed between writing the checkpoint and saying so.
        on_event(Checkpoint(step, str(checkpoint)))
    return step


class _Clocked:
    """A sink that remembers the last step, and the steps a second then."""

    def __init__(self, on_event: Sink, step: int) -> None:
        self._on_event = on_event
        self.step = step
        self.rate = 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Step):
            self.step, self.rate = event.step, event.rate
        elif isinstance(event, RolledBack):
            self.step = event.step
        self._on_event(event)

    def has_stepped(self) -> bool:
        """Whether it has seen any."""
        return self.rate > 0


@contextmanager
def _saved_without_others(clocked: _Clocked, saved: SavedState) -> Iterator[None]:
    """Where another process is lost inside, what is whole is saved: the state after the last step."""
    try:
        yield
    except (Stopped, ProcessError) as lost:
        saved.save(clocked.step)
        if clocked.step:
            lost.message = f"{lost.message}; saved after step {clocked.step}"
        lost.hint = lost.hint or _how_to_go_on(saved.run)
        raise


def _checkpoint_to_go_on_from(run: Run, on_event: Sink) -> Path | None:
    """The newest whole checkpoint; None where there is none."""
    done = run.state.step
    folder = last_good_checkpoint(run, on_event)
    if folder is None and done:
        message = f"no whole checkpoint is left of the {done} steps that were done: starting at the first step again"
        on_event(Warning(message, str(run.folder), "where you have a copy of one, stop this and put it back"))
    elif folder is None:
        on_event(Phase("resume", "no checkpoint: starting at the first step"))
    return folder


def _how_to_go_on(run: Run) -> str:
    return f"go on with: fluxtune train --resume {quote(str(run.folder))}"


@contextmanager
def _recorded(run: Run, resuming: bool) -> Iterator[None]:
    """Whatever ends the work ends the run's record too: an ``error`` event, and how the run was left.

    A resumed run that could not go on is what it was before, and a new one that was refused leaves nothing behind: the
    same command, once what it was refused for is mended, begins it.
    """
    before = run.state
    try:
        yield
    except BaseException as error:
        told = error if isinstance(error, FluxtuneError) else _unforeseen(error)
        if not resuming and told.exit_code in _REFUSALS and run.withdraw():
            raise
        # On a full disk nothing can be recorded; what went wrong first is still what the caller hears.
        with suppress(StorageError):
            run.append(Error.of(told))
            if not resuming or run.state is not before:
                run.update(status="stopped" if isinstance(told, Stopped) else "failed")
        raise


def _unforeseen(error: BaseException) -> FluxtuneError:
    """What the record says of an error that is none of ours."""
    if isinstance(error, KeyboardInterrupt):
        return Stopped("interrupted", ExitCode.INTERRUPTED)
    return FluxtuneError(f"unexpected {type(error).__name__}: {error}")


@contextmanager
def _interruptions(run: Run, should_stop: Callable[[], ExitCode | None]) -> Iterator[None]:
    """Turns an interruption that was asked for into an error of ours."""
    try:
        yield
    except KeyboardInterrupt:
        asked = should_stop()
        if asked is None:
            raise
        raise Stopped("stopped before training began", asked, hint=_how_to_go_on(run)) from None
