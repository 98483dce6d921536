"""Load what a step works on: the transformer, its adapter, the optimizer, the average, the samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fluxtune import rng
from fluxtune.config.memory import MemoryConfig
from fluxtune.config.schema import Config
from fluxtune.errors import UsageError
from fluxtune.events import Phase, Sink
from fluxtune.flux.base import Base
from fluxtune.flux.families import Family
from fluxtune.flux.load import load_transformer
from fluxtune.flux.weights import DTYPES
from fluxtune.lora.adapter import adapter_parameters, attach, start_from
from fluxtune.lora.reading import read_start
from fluxtune.memory.activations import ActivationOffload
from fluxtune.memory.recompute import keep_last, recompute_blocks
from fluxtune.memory.transfers import Transfers
from fluxtune.training.ema import MovingAverage
from fluxtune.training.examples import Prepared
from fluxtune.training.modulated import settled_memory
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
    transformer = load_transformer(base, settled_memory(config, base.family), dtype, device, on_event)
    priors = make_priors(base, prepared, transformer, on_event) if prepared.prior_requests else []
    attach(transformer, config.lora, base.family, rng.derive(config.training.seed, "adapter"))
    if config.lora.init_from and not goes_on:
        path = Path(config.lora.init_from)
        start_from(transformer, read_start(path, base.family), config.lora, base.family, str(path))
    learner = learner_of(transformer, config, base.family, base.embeds_guidance, device)
    parameters = adapter_parameters(transformer)
    average = MovingAverage(parameters, config.training.ema_decay)
    return Loaded(learner, parameters, average, SampleSource(config, prepared, priors, device))


def learner_of(
    transformer: Any,
    config: Config,
    family: Family,
    embeds_guidance: bool,
    device: str,
    transfers: Transfers | None = None,
) -> Learner:
    """What a step works on, around a transformer with its adapter; the memory simulator makes its own through this.

    Args:
        transfers: how activations go to system memory and come back; by default over a stream of their own.
    """
    recompute(transformer, family, config.memory, transfers)
    transformer.train()
    parameters = list(adapter_parameters(transformer).values())
    accelerator = make_accelerator(config, device)
    return Learner(
        family=family,
        transformer=transformer,
        optimizer=accelerator.prepare_optimizer(make_optimizer(parameters, config.training)),
        accelerator=accelerator,
        parameters=parameters,
        dtype=DTYPES[config.training.precision],
        guidance=config.training.guidance if embeds_guidance else None,
        max_grad_norm=config.training.max_grad_norm,
    )


def recompute(transformer: Any, family: Family, memory: MemoryConfig, transfers: Transfers | None = None) -> None:
    """Makes each block keep for the backward what ``memory`` says.

    Args:
        transfers: how the inputs of blocks go to system memory and come back, where they do.

    Raises:
        UsageError: more blocks are named than there are.
    """
    if memory.recompute == "none":
        return
    offload = ActivationOffload(transformer.device, transfers=transfers) if memory.offload_activations else None
    kinds = [list(transformer.get_submodule(name).children()) for name in family.blocks]
    counts = {name: getattr(memory.keep, name) for name in ("attention", "products", "everything")}
    for kind, blocks in enumerate(kinds):
        asked = {name: numbers[kind] if kind < len(numbers) else 0 for name, numbers in counts.items()}
        if sum(asked.values()) > len(blocks):
            raise _too_many(f"{sum(asked.values())} of the {len(blocks)} {family.blocks[kind]}")
        recompute_blocks(blocks, keep_last(len(blocks), **asked), offload.around if offload else None)
    if any(len(numbers) > len(kinds) for numbers in counts.values()):
        raise _too_many(f"more than {len(kinds)} kinds of blocks")


def _too_many(what: str) -> UsageError:
    return UsageError(f"memory.keep names {what}", where="memory.keep", hint="lower its numbers, or leave it out")


def make_accelerator(config: Config, device: str) -> Any:
    """accelerate with our device and precision; its process-wide state is made anew for every run.

    No autocast: the base computes in the precision that it is held in, as it does in sampling, and the adapter's layers
    cast their own weights. Autocast would compute norms in float32 and keep both copies of what goes in and comes out.
    Only a base that is held in float32 is computed with in bfloat16 by it.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    casts = config.training.precision == "bf16" and config.memory.base_precision == "fp32"
    return Accelerator(
        cpu=device != "cuda",
        mixed_precision="bf16" if casts else "no",
        gradient_accumulation_steps=config.training.accumulation,
    )
