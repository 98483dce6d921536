"""A whole run: preflight, prepare, load, train, finish. ``train`` is what the command line and Python callers use."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from fluxtune.config.layers import to_toml
from fluxtune.config.schema import Config
from fluxtune.config.settings import values_of
from fluxtune.dataset.pictures import CaptionBare
from fluxtune.errors import (
    ExitCode,
    FluxtuneError,
    ProcessError,
    Refusal,
    Stopped,
    StorageError,
    UsageError,
)
from fluxtune.events import Error, Event, Phase, Result, Resumed, RunStarted, Sink, Step, as_record, ignore
from fluxtune.flux.weights import DTYPES
from fluxtune.memory.shortage import fits_in_memory
from fluxtune.runs import Run, require_unused
from fluxtune.training.captions import AskCaptioner, as_recorded, record_captions
from fluxtune.training.checkpoint import last_good_checkpoint, load_checkpoint, steps_done
from fluxtune.training.load import load
from fluxtune.training.loop import train_steps
from fluxtune.training.outputs import Outputs
from fluxtune.training.pace import keep_pace
from fluxtune.training.preflight import Preflight, preflight
from fluxtune.training.prepare import prepare
from fluxtune.training.processes import Processes, dealt, joined, tell_shares
from fluxtune.training.trackers import tracked
from fluxtune.training.worker import Task, take_part

_SMALLER = "take a smaller preset (`fluxtune presets` lists them) or --resolution, or --set memory.recompute=all"


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
            run was begun with.
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
        return _train_as_main(
            processes, config, output, origins, resume, on_event, should_stop, set(accept), caption_bare
        )


def _train_as_main(
    processes: Processes,
    config: Config,
    output: Path,
    origins: dict[str, str] | None,
    resume: Path | None,
    on_event: Sink,
    should_stop: Callable[[], ExitCode | None],
    accepted: set[Refusal],
    caption_bare: AskCaptioner | None,
) -> TrainResult:
    early: list[tuple[Event, dict[str, Any]]] = []

    def before_run(event: Event) -> None:
        early.append((event, as_record(event)))
        on_event(event)

    goes_on = False
    dealt_out: dict[str, str] = {}
    captions: CaptionBare | None = partial(caption_bare, config, before_run) if caption_bare else None
    if resume is None:
        # A wrong run folder is told before the base model downloads and the pictures are read.
        require_unused(output)
        config, dealt_out = dealt(config, processes.number)
    else:
        state = Run.open(resume).state
        goes_on = state.checkpoint is not None
        accepted |= {each for each in Refusal if each in state.accepted}
        captions = as_recorded(resume, before_run, captions)
    with fits_in_memory("this training", _SMALLER):
        tell_shares(config, processes.number, before_run)
        ready = preflight(config, before_run, goes_on, accepted, captions, free=processes.free)
    origins = {**(origins or {}), **dealt_out, **_planned(config, ready.config)}
    config = ready.config
    resuming = resume is not None
    if resume is not None:
        run = Run.open(resume)
    else:
        run = Run.create(output, to_toml(config), origins, ready.facts, ready.accepted)
    with (
        run.locked(),
        _recorded(run, resuming),
        _interruptions(run, should_stop),
        fits_in_memory("this training", _SMALLER),
    ):
        for event, record in early:
            run.append(event, record)

        def report(event: Event) -> None:
            run.append(event)
            on_event(event)

        with tracked(run, config, report) as told:
            return _train_in(processes, run, config, origins, ready, resuming, told, should_stop)


def _planned(before: Config, after: Config) -> dict[str, str]:
    """The settings that the plan decided, with that as their origin."""
    was, is_now = values_of(before), values_of(after)
    return {key: "the plan for this card" for key in is_now if was[key] != is_now[key]}


def _train_in(
    processes: Processes,
    run: Run,
    config: Config,
    origins: dict[str, str],
    ready: Preflight,
    resuming: bool,
    on_event: Sink,
    should_stop: Callable[[], ExitCode | None],
) -> TrainResult:
    started, training = time.time(), config.training
    on_event(RunStarted(str(run.folder), ready.base.name, training.steps, config.model_dump(mode="json")))
    if not resuming:
        record_captions(run.folder, ready.pictures)
    checkpoint = _checkpoint_to_go_on_from(run, training.steps, on_event) if resuming else None
    dtype = DTYPES[training.precision]
    prepared = prepare(config, ready.base, ready.pictures, ready.prompts, dtype, ready.device, on_event)
    loaded = load(config, ready.base, prepared, ready.device, on_event, goes_on=checkpoint is not None)
    outputs = Outputs(run, config, ready, prepared, loaded, started, on_event)
    first_step = 0
    if checkpoint is not None:
        first_step = load_checkpoint(checkpoint, loaded.parameters, loaded.learner.optimizer.optimizer, loaded.average)
        on_event(Resumed(first_step, str(checkpoint)))
    if resuming:
        # Not earlier: a resume that is refused leaves the run, its settings and captions as they were.
        run.go_on(to_toml(config), origins, ready.accepted)
        record_captions(run.folder, ready.pictures)
    processes.hand_out(Task(replace(ready, plan=None), checkpoint, run.result_path(outputs.name)))
    if first_step == 0 and config.previews.every:
        outputs.previews(0)
    layers = len(loaded.parameters) // 2
    on_event(Phase("train", f"{training.steps - first_step} steps, {layers} layers adapted"))
    clocked = _Clocked(on_event, first_step)
    with _saved_without_others(clocked, first_step, outputs):
        step, asked = train_steps(
            training,
            loaded.learner,
            loaded.source,
            loaded.average,
            first_step,
            outputs.after_step,
            should_stop,
            clocked,
            processes,
        )
    if ready.plan is not None and clocked.rate:
        keep_pace(ready.plan.work, ready.device, 1 / clocked.rate, processes.number)
    if asked is not None:
        if step > first_step:
            outputs.checkpoint(step)
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


class _Clocked:
    """A sink that remembers the last step, and the steps a second then."""

    def __init__(self, on_event: Sink, step: int) -> None:
        self._on_event = on_event
        self.step = step
        self.rate = 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Step):
            self.step, self.rate = event.step, event.rate
        self._on_event(event)


@contextmanager
def _saved_without_others(clocked: _Clocked, first_step: int, outputs: Outputs) -> Iterator[None]:
    """Where another process is lost inside, what is whole is saved: the state after the last step."""
    try:
        yield
    except (Stopped, ProcessError) as lost:
        if clocked.step > first_step:
            outputs.checkpoint(clocked.step)
        lost.message = f"{lost.message}; saved after step {clocked.step}"
        lost.hint = lost.hint or _how_to_go_on(outputs.run)
        raise


def _checkpoint_to_go_on_from(run: Run, steps: int, on_event: Sink) -> Path | None:
    """The newest whole checkpoint; None where there is none yet.

    Raises:
        UsageError: more steps than ``steps`` are done already.
    """
    folder = last_good_checkpoint(run, on_event)
    if folder is None:
        on_event(Phase("resume", "no checkpoint yet: starting at the first step"))
        return None
    done = steps_done(folder)
    if done > steps:
        raise UsageError(
            f"training.steps is {steps}, and this run has done {done} steps already",
            where=str(run.folder),
            hint=f"give --steps {done} or more; {folder} holds the LoRA as it is",
        )
    return folder


def _how_to_go_on(run: Run) -> str:
    return f"go on with: fluxtune train --resume {quote(str(run.folder))}"


@contextmanager
def _recorded(run: Run, resuming: bool) -> Iterator[None]:
    """Whatever ends the work ends the run's record too: an ``error`` event, and how the run was left.

    A resumed run that could not go on is what it was before.
    """
    before = run.state
    try:
        yield
    except BaseException as error:
        told = error if isinstance(error, FluxtuneError) else _unforeseen(error)
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
