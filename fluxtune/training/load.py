"""Load what a step works on: the transformer, its adapter, the optimizer, the average, the samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fluxtune import rng
from fluxtune.config.schema import Config
from fluxtune.config.training import TrainingConfig
from fluxtune.events import Phase, Sink
from fluxtune.flux.load import DTYPES, Base, load_transformer
from fluxtune.lora.adapter import adapter_parameters, attach, start_from
from fluxtune.lora.files import read_lora
from fluxtune.training.ema import MovingAverage
from fluxtune.training.examples import Prepared
from fluxtune.training.optimizers import make_optimizer
from fluxtune.training.prior import make_priors
from fluxtune.training.samples import SampleSource
from fluxtune.training.step import Learner


@dataclass(frozen=True)
class Loaded:
    """Everything the loop needs. ``parameters`` are the adapter's, by name."""

    learner: Learner
    parameters: dict[str, torch.nn.Parameter]
    average: MovingAverage
    source: SampleSource


def load(config: Config, base: Base, prepared: Prepared, device: str, on_event: Sink, goes_on: bool = False) -> Loaded:
    """Load the base, make the prior pictures while it is still untouched, then attach the adapter.

    Args:
        goes_on: a checkpoint follows, which stands in for ``lora.init_from``.

    Raises:
        BaseModelError: the base cannot be loaded.
        UsageError: ``lora.init_from`` does not fit the base or the settings.
    """
    dtype = DTYPES[config.training.precision]
    on_event(Phase("load", f"{base.name} in {config.memory.base_precision} on {device}"))
    transformer = load_transformer(base, config.memory, dtype, device, on_event)
    priors = make_priors(base, prepared, transformer, on_event) if prepared.prior_requests else []
    attach(transformer, config.lora, base.family, rng.derive(config.training.seed, "adapter"))
    if config.lora.init_from and not goes_on:
        path = Path(config.lora.init_from)
        start_from(transformer, read_lora(path, base.family), config.lora, str(path))
    if config.memory.recompute == "all":
        transformer.enable_gradient_checkpointing()
    transformer.train()
    parameters = adapter_parameters(transformer)
    accelerator = make_accelerator(config.training, device)
    learner = Learner(
        family=base.family,
        transformer=transformer,
        optimizer=accelerator.prepare_optimizer(make_optimizer(list(parameters.values()), config.training)),
        accelerator=accelerator,
        parameters=list(parameters.values()),
        dtype=dtype,
        guidance=config.training.guidance if base.embeds_guidance else None,
        max_grad_norm=config.training.max_grad_norm,
    )
    average = MovingAverage(parameters, config.training.ema_decay)
    return Loaded(learner, parameters, average, SampleSource(config, prepared, priors, device))


def make_accelerator(training: TrainingConfig, device: str) -> Any:
    """accelerate with our device and precision; its process-wide state is made anew for every run."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="bf16" if training.precision == "bf16" else "no",
        gradient_accumulation_steps=training.accumulation,
    )
