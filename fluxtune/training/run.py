"""A whole run: preflight, prepare, load, train, finish. ``train`` is what the command line and Python callers use."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fluxtune import __version__, rng
from fluxtune.config.layers import to_toml
from fluxtune.config.schema import Config
from fluxtune.dataset.folder import Picture
from fluxtune.errors import ExitCode, FluxtuneError, Stopped, StorageError
from fluxtune.events import Error, Event, Phase, Result, Resumed, RunStarted, Sink, ignore
from fluxtune.files import write_json, write_text
from fluxtune.flux.load import DTYPES, Base, load_transformer
from fluxtune.lora.adapter import adapter_layers, adapter_parameters, attach, scale_of, start_from
from fluxtune.lora.files import read_lora, write_lora
from fluxtune.lora.metadata import LoraFacts
from fluxtune.runs import Run
from fluxtune.training.checkpoint import last_good_checkpoint, load_checkpoint, save_checkpoint
from fluxtune.training.ema import MovingAverage
from fluxtune.training.loop import train_steps
from fluxtune.training.optimizers import make_optimizer
from fluxtune.training.preflight import Preflight, preflight
from fluxtune.training.prepare import Prepared, prepare
from fluxtune.training.previews import make_previews, preview_requests
from fluxtune.training.prior import make_priors
from fluxtune.training.samples import SampleSource
from fluxtune.training.step import Learner


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
    base, device, dtype = ready.base, ready.device, DTYPES[config.training.precision]
    on_event(RunStarted(str(run.folder), base.name, config.training.steps, config.model_dump(mode="json")))
    started = time.time()
    prepared = prepare(config, base, ready.pictures, ready.prompts, dtype, device, on_event)
    on_event(Phase("load", f"{base.name} in {config.memory.base_precision} on {device}"))
    transformer = load_transformer(base, config.memory, dtype, device)
    priors = (
        make_priors(config, base, prepared, transformer, on_event)
        if config.training.preservation.method == "prior"
        else []
    )
    learner, parameters = _learner(config, base, transformer, device, dtype)
    average = MovingAverage(parameters, config.training.ema_decay)
    source = SampleSource(config, prepared, priors, device)
    first_step = _resume_state(run, parameters, learner, average, on_event) if resuming else 0
    requests = preview_requests(config, ready.preview_prompts)
    name = config.name or run.folder.resolve().name
    file_dtype, scale = DTYPES[config.checkpoints.dtype], scale_of(config.lora)

    def facts(step: int) -> LoraFacts:
        epochs = int(step / source.steps_per_epoch)
        return _facts(name, config, base, ready.pictures, step, epochs, started)

    def previews(step: int) -> None:
        with average.applied():
            make_previews(run, step, requests, base, prepared, transformer, on_event)

    def checkpoint(step: int) -> None:
        optimizer = learner.optimizer.optimizer
        save_checkpoint(
            run, step, parameters, optimizer, average, scale, file_dtype, facts(step), config.checkpoints.keep, on_event
        )

    def after_step(step: int) -> None:
        last = step == config.training.steps
        if last or (config.checkpoints.every and step % config.checkpoints.every == 0):
            checkpoint(step)
        if config.previews.every and (last or step % config.previews.every == 0):
            previews(step)

    if first_step == 0 and config.previews.every:
        previews(0)
    on_event(Phase("train", f"{config.training.steps - first_step} steps, {len(parameters) // 2} layers adapted"))
    steps_done = _StepCounter(first_step, after_step)
    asked = train_steps(
        config.training, learner, source, average, first_step, steps_done, should_stop, on_event
    )
    if asked is not None:
        checkpoint(steps_done.step)
        raise Stopped(
            f"stopped after step {steps_done.step} of {config.training.steps}; everything is saved",
            asked,
            hint=f"go on with: fluxtune train --resume {run.folder}",
        )
    on_event(Phase("finish", "writing the LoRA and reading it back"))
    file = run.result_path(name)
    digest = write_lora(file, adapter_layers(average.weights(), scale), file_dtype, facts(config.training.steps))
    run.update(status="finished", step=config.training.steps, result=file.name)
    on_event(
        Result(
            "train",
            {
                "run": str(run.folder),
                "file": str(file),
                "sha256": digest,
                "steps": config.training.steps,
                "layers": len(parameters) // 2,
                "seconds": round(time.time() - started, 1),
            },
        )
    )
    return TrainResult(run.folder, file, config.training.steps)


class _StepCounter:
    """Passes steps on and remembers the last."""

    def __init__(self, step: int, after_step: Callable[[int], None]) -> None:
        self.step = step
        self._after_step = after_step

    def __call__(self, step: int) -> None:
        self.step = step
        self._after_step(step)


def _learner(
    config: Config, base: Base, transformer: Any, device: str, dtype: torch.dtype
) -> tuple[Learner, dict[str, torch.nn.Parameter]]:
    """Attach the adapter and put everything a step needs together."""
    accelerator = _accelerator(config, device)
    attach(transformer, config.lora, base.family, rng.derive(config.training.seed, "adapter"))
    if config.lora.init_from:
        path = Path(config.lora.init_from)
        start_from(transformer, read_lora(path), config.lora, str(path))
    if config.memory.recompute == "all":
        transformer.enable_gradient_checkpointing()
    transformer.train()
    parameters = adapter_parameters(transformer)
    optimizer = accelerator.prepare_optimizer(make_optimizer(list(parameters.values()), config.training))
    learner = Learner(
        family=base.family,
        transformer=transformer,
        optimizer=optimizer,
        accelerator=accelerator,
        parameters=list(parameters.values()),
        dtype=dtype,
        guidance=config.training.guidance if base.embeds_guidance else None,
        max_grad_norm=config.training.max_grad_norm,
    )
    return learner, parameters


def _accelerator(config: Config, device: str) -> Any:
    """accelerate with our device and precision; its process-wide state is made anew for every run."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="bf16" if config.training.precision == "bf16" else "no",
        gradient_accumulation_steps=config.training.accumulation,
    )


def _resume_state(
    run: Run,
    parameters: dict[str, torch.nn.Parameter],
    learner: Learner,
    average: MovingAverage,
    on_event: Sink,
) -> int:
    folder = last_good_checkpoint(run, on_event)
    if folder is None:
        on_event(Phase("resume", "no checkpoint yet: starting at the first step"))
        return 0
    step = load_checkpoint(folder, parameters, learner.optimizer.optimizer, average)
    on_event(Resumed(step, str(folder)))
    return step


def _facts(
    name: str, config: Config, base: Base, pictures: list[Picture], step: int, epochs: int, started: float
) -> LoraFacts:
    is_local = Path(base.name).expanduser().exists()
    return LoraFacts(
        name=name,
        base=Path(base.name).name if is_local else base.name,
        architecture=base.family.architecture(base.embeds_guidance),
        rank=config.lora.rank,
        steps=step,
        epochs=epochs,
        learning_rate=config.training.learning_rate,
        optimizer=config.training.optimizer,
        seed=config.training.seed,
        resolution=max(config.dataset.resolution),
        pictures=len(pictures),
        started=started,
        finished=time.time(),
        trigger=config.dataset.trigger,
        version=__version__,
    )
