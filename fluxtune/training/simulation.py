"""A run's phases on tensors without content: what each takes in memory, by the very functions that the run calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import init_empty_weights

from fluxtune import rng
from fluxtune.config.schema import Config
from fluxtune.dataset.images import Size
from fluxtune.flux.base import Base
from fluxtune.flux.empty import transformer_config
from fluxtune.flux.modulation import held_numbers
from fluxtune.flux.simulation import (
    claim_transformer,
    claim_weights,
    encoding_texts,
    give_weights,
    held_transformer,
    held_vae,
)
from fluxtune.flux.weights import DTYPES
from fluxtune.lora.adapter import adapter_parameters, as_saved, attach, scale_of
from fluxtune.memory.forecast import Forecast, phase_peaks, thinned
from fluxtune.memory.ledger import Ledger
from fluxtune.memory.simulate import DEVICE, SimulatedTransfers, simulate
from fluxtune.training.ema import MovingAverage
from fluxtune.training.load import learner_of
from fluxtune.training.modulated import settled_memory
from fluxtune.training.step import Learner, MicroBatch, clip, learn, preserve, update

STEP = ("forward", "backward", "update")
"""The phases of a training step."""


@dataclass(frozen=True)
class Work:
    """What decides how much memory a run takes. Sizes are (width, height) in pixels.

    Attributes:
        size: of the largest pictures that are trained on.
        preview: of the previews; None makes none.
        depths: blocks of each kind, where not as many as the base has.
        as_cuda: count as a graphics card does, else as the processor.
        capacity: bytes of the card that the allocator can have; None for as many as it asks for.
    """

    config: Config
    base: Base
    size: Size
    preview: Size | None
    depths: tuple[int, ...] | None = None
    as_cuda: bool = True
    capacity: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        return DTYPES[self.config.training.precision]

    def with_memory(self, **settings: Any) -> Work:
        """The same with other settings of ``[memory]``, checked as a user's are."""
        memory = self.config.memory.model_validate({**self.config.memory.model_dump(), **settings})
        return replace(self, config=self.config.model_copy(update={"memory": memory}))

    @property
    def transformer(self) -> dict[str, Any]:
        """The config of the transformer, as deep as it is wanted."""
        config, family = transformer_config(self.base.family, self.base.folder), self.base.family
        return config | dict(zip(family.depths, self.depths, strict=True)) if self.depths else config


def foresee_encoders(work: Work) -> Forecast:
    """Simulates the encoding of captions and of pictures alone."""
    captions = encoding_texts(work.base, work.config.memory.text_precision, work.dtype, work.as_cuda, work.capacity)
    return Forecast(phase_peaks([*captions.moments, *_encoding_pictures(work).moments]))


def foresee_training(work: Work) -> Forecast:
    """Simulates loading the transformer, a training step and a preview alone."""
    system: dict[str, int] = {}
    moments = simulate_training(work, system=system).moments
    return Forecast(phase_peaks(moments), thinned([moment for moment in moments if moment.phase in STEP]), system)


def _encoding_pictures(work: Work) -> Ledger:
    vae, (width, height) = held_vae(work.base, work.config.memory.vae_tiling), work.size

    def build(ledger: Ledger) -> Any:
        with ledger.phase("encode pictures"):
            give_weights(vae, work.dtype)
            claim_weights(vae, ledger)
        return vae

    def step(vae: Any, ledger: Ledger) -> None:
        with ledger.phase("encode pictures"), torch.no_grad():
            pixels = torch.zeros(1, 3, height, width, dtype=work.dtype, device=DEVICE)
            work.base.family.encode_image(vae, pixels, torch.Generator())

    return simulate(build, step, work.as_cuda, work.capacity)


@dataclass(frozen=True)
class _Run:
    """What the training of a run works on."""

    learner: Learner
    batch: MicroBatch
    average: MovingAverage
    transfers: SimulatedTransfers


def simulate_training(
    work: Work, watch: Callable[[Any, Ledger], None] | None = None, system: dict[str, int] | None = None
) -> Ledger:
    """Loading, a training step of a run that has gone on for a while, and a preview.

    Args:
        watch: called with the transformer before it computes.
        system: takes the bytes of system memory that are held, by what holds them.
    """
    work = _without_autocast(work)
    config, base = work.config, work.base
    memory, precision = settled_memory(config, base.family), config.memory.base_precision
    transformer = held_transformer(base.family, work.transformer, memory, work.dtype, work.as_cuda)
    with init_empty_weights():
        attach(transformer, config.lora, base.family, rng.derive(config.training.seed, "adapter"))
    vae = held_vae(base, config.memory.vae_tiling) if work.preview else None

    def build(ledger: Ledger) -> _Run:
        transfers = SimulatedTransfers(ledger)
        with ledger.phase("load"):
            claim_transformer(transformer, base.family, config.memory, work.dtype, ledger, transfers)
            if system is not None:
                modulation = held_numbers(transformer) * DTYPES.get(precision, work.dtype).itemsize
                system.update({"modulation": modulation, "streamed blocks": transfers.held})
            learner = learner_of(transformer, config, base.family, base.embeds_guidance, DEVICE, transfers)
            _watch(learner, ledger)
            if watch is not None:
                watch(transformer, ledger)
            average = MovingAverage(adapter_parameters(transformer), config.training.ema_decay)
            for tensor in average.average.values():
                ledger.claim(tensor, "optimizer")
            _warm_up(learner, work.as_cuda, ledger)
            return _Run(_Announcing.backwards_of(learner, ledger), _batch(work, ledger), average, transfers)

    def step(run: _Run, ledger: Ledger) -> None:
        with ledger.phase("forward"):
            learn(run.learner, run.batch)
            if config.training.preservation.method != "none":
                preserve(run.learner, run.batch, 1.0)
        if system is not None:
            system["offloaded activations"] = run.transfers.downloaded
        with ledger.phase("update"):
            clip(run.learner)
            update(run.learner)
            run.average.update()
        if work.preview is not None:
            ledger.empty_cache()
            with ledger.phase("preview"):
                _preview(run, vae, work, work.preview, ledger)

    return simulate(build, step, work.as_cuda, work.capacity)


def _without_autocast(work: Work) -> Work:
    """The meta device has no autocast, which computes in bfloat16 with a base held in float32: counted as float32."""
    config = work.config
    if config.memory.base_precision != "fp32" or config.training.precision == "fp32":
        return work
    training = config.training.model_copy(update={"precision": "fp32"})
    return replace(work, config=config.model_copy(update={"training": training}))


def _batch(work: Work, ledger: Ledger) -> MicroBatch:
    """As `SampleSource` draws one, of the largest size."""
    config, number, (width, height) = work.transformer, work.config.training.batch_size, work.size
    multiple = work.base.family.side_multiple
    shape = (number, config["in_channels"], height // multiple, width // multiple)
    text = work.base.family.blank_text(config, number, work.base.text_tokens)
    text = {name: tensor.to(DEVICE, work.dtype) for name, tensor in text.items()}
    with torch.device(DEVICE):
        latents, noise, weights = torch.zeros(shape), torch.zeros(shape), torch.zeros(number, 1, *shape[2:])
        batch = MicroBatch(latents, noise, torch.zeros(number), text, weights)
    for tensor in (batch.latents, batch.noise, batch.sigmas, batch.weights, *text.values()):
        assert tensor is not None
        ledger.claim(tensor, "inputs")
    return batch


def _watch(learner: Learner, ledger: Ledger) -> None:
    """Tells gradients apart as they come."""
    for parameter in learner.parameters:
        parameter.register_post_accumulate_grad_hook(lambda each: ledger.claim(each.grad, "gradients"))


def _warm_up(learner: Learner, as_cuda: bool, ledger: Ledger) -> None:
    """A first update, so that the optimizer has its state."""
    optimizer = learner.optimizer.optimizer
    if as_cuda and isinstance(optimizer, torch.optim.AdamW):
        # What torch chooses by itself for parameters on a card.
        optimizer.param_groups[0]["foreach"] = True
    for parameter in learner.parameters:
        parameter.grad = torch.zeros_like(parameter)
    clip(learner)
    update(learner)
    for state in optimizer.state.values():
        for each in state.values():
            if isinstance(each, torch.Tensor):
                ledger.claim(each, "optimizer")


class _Announcing:
    """An accelerator that tells the ledger when a backward begins, and what is kept for it."""

    def __init__(self, accelerator: Any, ledger: Ledger) -> None:
        self._accelerator = accelerator
        self._ledger = ledger

    @classmethod
    def backwards_of(cls, learner: Learner, ledger: Ledger) -> Learner:
        """The same learner, announced."""
        return replace(learner, accelerator=cls(learner.accelerator, ledger))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def backward(self, loss: torch.Tensor) -> None:
        """As the accelerator does it."""
        self._ledger.claim_rest("activations")
        with self._ledger.phase("backward"):
            self._accelerator.backward(loss)


def _preview(run: _Run, vae: Any, work: Work, size: Size, ledger: Ledger) -> None:
    """One denoising step and the picture that comes of it, as `previews.py` makes them."""
    learner, family, (width, height) = run.learner, work.base.family, size
    give_weights(vae, work.dtype)
    claim_weights(vae, ledger)
    shape = (1, run.batch.latents.shape[1], height // family.side_multiple, width // family.side_multiple)
    text = {name: tensor[:1] for name, tensor in run.batch.text.items()}
    file_dtype = DTYPES[work.config.checkpoints.dtype]
    saved = as_saved(adapter_parameters(learner.transformer), scale_of(work.config.lora), file_dtype, learner.dtype)
    with run.average.applied(), saved, torch.no_grad():
        latents, sigmas = torch.zeros(shape, dtype=learner.dtype, device=DEVICE), torch.zeros(1, device=DEVICE)
        latents = latents + family.forward(learner.transformer, latents, sigmas, text, learner.guidance)
        family.decode_image(vae, latents)
