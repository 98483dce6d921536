"""A whole run: preflight, prepare, load, train, finish. ``train`` is what the command line and Python callers use."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fluxtune.config.layers import to_toml
from fluxtune.config.schema import Config
from fluxtune.errors import ExitCode, FluxtuneError, Stopped
from fluxtune.events import Error, Event, Phase, Result, Resumed, RunStarted, Sink, ignore
from fluxtune.files import write_json, write_text
from fluxtune.flux.load import DTYPES
from fluxtune.runs import Run
from fluxtune.training.checkpoint import last_good_checkpoint, load_checkpoint
from fluxtune.training.load import Loaded, load
from fluxtune.training.loop import train_steps
from fluxtune.training.outputs import Outputs
from fluxtune.training.preflight import Preflight, preflight
from fluxtune.training.prepare import prepare


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
) -> TrainResult:
    """Train a LoRA.

    Args:
        output: the run folder to make; with ``resume``, the same folder.
        origins: where each setting came from, for the record.
        resume: run folder to go on from, at its last whole checkpoint.
        should_stop: asked after every step; an exit code saves and stops.

    Raises:
        FluxtuneError: whatever the user can mend; its ``exit_code`` says of which kind.
        Stopped: ``should_stop`` asked for it; the state is saved.
    """
    early: list[Event] = []

    def before_run(event: Event) -> None:
        early.append(event)
        on_event(event)

    ready = preflight(config, before_run)
    config_toml = to_toml(config)
    run = Run.open(resume) if resume is not None else Run.create(output, config_toml, origins or {}, ready.facts)
    with run.locked():
        if resume is not None:
            write_text(run.config_path, config_toml)
            write_json(run.folder / "origins.json", origins or {})
        run.update(status="running", result=None)
        for event in early:
            run.append(event)

        def report(event: Event) -> None:
            run.append(event)
            on_event(event)

        try:
            result = _train_in(run, config, ready, resume is not None, report, should_stop)
        except FluxtuneError as error:
            # The caller reports the error where it likes; the run's own record ends with it.
            run.append(Error(error.exit_code, error.message, error.where, error.hint))
            run.update(status="stopped" if isinstance(error, Stopped) else "failed")
            raise
        except (RuntimeError, OSError):
            run.update(status="failed")
            raise
    return result


def _train_in(
    run: Run,
    config: Config,
    ready: Preflight,
    resuming: bool,
    on_event: Sink,
    should_stop: Callable[[], ExitCode | None],
) -> TrainResult:
    started, training = time.time(), config.training
    on_event(RunStarted(str(run.folder), ready.base.name, training.steps, config.model_dump(mode="json")))
    dtype = DTYPES[training.precision]
    prepared = prepare(config, ready.base, ready.pictures, ready.prompts, dtype, ready.device, on_event)
    loaded = load(config, ready.base, prepared, ready.device, on_event)
    outputs = Outputs(run, config, ready, prepared, loaded, started, on_event)
    first_step = _resume(run, loaded, on_event) if resuming else 0
    if first_step == 0 and config.previews.every:
        outputs.previews(0)
    layers = len(loaded.parameters) // 2
    on_event(Phase("train", f"{training.steps - first_step} steps, {layers} layers adapted"))
    step, asked = train_steps(
        training, loaded.learner, loaded.source, loaded.average, first_step, outputs.after_step, should_stop, on_event
    )
    if asked is not None:
        outputs.checkpoint(step)
        raise Stopped(
            f"stopped after step {step} of {training.steps}; everything is saved",
            asked,
            hint=f"go on with: fluxtune train --resume {run.folder}",
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


def _resume(run: Run, loaded: Loaded, on_event: Sink) -> int:
    """Restore the newest whole checkpoint; returns the steps done."""
    folder = last_good_checkpoint(run, on_event)
    if folder is None:
        on_event(Phase("resume", "no checkpoint yet: starting at the first step"))
        return 0
    step = load_checkpoint(folder, loaded.parameters, loaded.learner.optimizer.optimizer, loaded.average)
    on_event(Resumed(step, str(folder)))
    return step
