"""What a training run works on, with random weights and pictures: loaded and trained by the functions of ``train``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fluxtune import rng
from fluxtune.config.model import ModelConfig
from fluxtune.config.training import TrainingConfig
from fluxtune.flux.base import Base, open_base
from fluxtune.flux.empty import empty_text_encoder, empty_transformer, empty_vae
from fluxtune.flux.known import known_base
from fluxtune.flux.load import build_transformer, is_text_quantized, tile
from fluxtune.flux.weights import DTYPES, Holding, fill, shapes_of
from fluxtune.lora.adapter import attach
from fluxtune.memory.kernels import kernels_of_the_device
from fluxtune.memory.simulate import give_content
from fluxtune.training.load import learner_of
from fluxtune.training.modulated import settled_memory
from fluxtune.training.samples import Condition, Samples, SampleSource
from fluxtune.training.simulation import Work
from fluxtune.training.step import Learner, MicroBatch

SCALES = ("dev", "tiny")
"""FLUX.1-dev with its 11.9 billion weights; the embedded model, of the same classes, to try a benchmark anywhere."""


def base_of(scale: str) -> Base:
    """The configs of the base model of that scale."""
    base = known_base("black-forest-labs/FLUX.1-dev") if scale == "dev" else open_base(ModelConfig(base="nano"))
    assert base is not None
    return base


def random_weights(module: nn.Module, device: str, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter of a module, drawn on the device, one at a time."""
    for name, shape in shapes_of(module).items():
        yield name, torch.empty(shape, device=device, dtype=dtype).normal_(0.0, 0.02)


def text_encoders(work: Work, device: str) -> list[Any]:
    """As ``load_text_pipeline`` holds them."""
    precision = work.config.memory.text_precision
    *short, long = [empty_text_encoder(work.base.folder, part) for part in work.base.text_encoders]
    for encoder in short:
        held = DTYPES.get(precision, work.dtype)
        fill(encoder, random_weights(encoder, device, held), Holding(held, device), "random weights")
    holding = Holding(work.dtype, device, precision, lambda path: is_text_quantized(path, precision))
    fill(long, random_weights(long, device, work.dtype), holding, "random weights")
    for encoder in (*short, long):
        encoder.tie_weights()
    return [*short, long]


def vae(base: Base, tiling: bool, dtype: torch.dtype, device: str) -> Any:
    """As ``load_vae`` holds it."""
    made = empty_vae(base.folder)
    fill(made, random_weights(made, device, dtype), Holding(dtype, device), "random weights")
    if tiling:
        tile(made)
    return made


def learner(work: Work, device: str) -> Learner:
    """The transformer with a fresh adapter, ready to be trained; as ``training/load.py`` makes it."""
    config, base = work.config, work.base
    transformer = transformer_of(work, device)
    attach(transformer, config.lora, base.family, rng.derive(config.training.seed, "adapter"))
    return learner_of(transformer, config, base.family, base.embeds_guidance, device)


def transformer_of(work: Work, device: str) -> Any:
    """As ``load_transformer`` holds it."""
    memory, family = settled_memory(work.config, work.base.family), work.base.family
    weights = random_weights(empty_transformer(family, work.transformer), device, work.dtype)
    return build_transformer(family, work.transformer, weights, memory, work.dtype, device, "random weights")


def step_operations(work: Work) -> int:
    """Operations of forward and backward of one micro-batch where nothing is recomputed, as torch counts them."""
    family = work.base.family
    transformer = empty_transformer(family, work.transformer)
    give_content(transformer, lambda _: work.dtype)
    with init_empty_weights():
        attach(transformer, work.config.lora, family, 0)
    batch = RandomSource(work, "meta").at(0).subject
    guidance = 1.0 if work.base.embeds_guidance else None
    with kernels_of_the_device(as_cuda=True), FlopCounterMode(display=False) as counter:
        noisy = batch.latents.to(work.dtype)
        family.forward(transformer, noisy, batch.sigmas, batch.text, guidance).sum().backward()
    return counter.get_total_flops()


class RandomSource(SampleSource):
    """Draws random latents and text, all of one size."""

    def __init__(self, work: Work, device: str) -> None:
        self._work = work
        self._on = device

    def at(self, micro_step: int) -> Samples:
        """The samples of one micro-step, on the device."""
        config, (width, height) = self._work.transformer, self._work.size
        multiple = self._work.base.family.side_multiple
        told = self.conditions(micro_step)[0]
        generator = rng.generator(self._training.seed, "latents", micro_step)
        shape = (self._training.batch_size, config["in_channels"], height // multiple, width // multiple)
        latents, noise = (torch.randn(shape, generator=generator).to(self._on) for _ in range(2))
        return Samples(MicroBatch(latents, noise, told.sigmas, told.text), None, 0)

    def pictures(self, micro_step: int) -> list[str]:
        """None: they have no names."""
        return []

    def epoch(self, micro_step: int) -> int:
        """Random latents never come again."""
        return 0

    def conditions(self, micro_step: int) -> list[Condition]:
        """That of one micro-step."""
        batch, base = self._training.batch_size, self._work.base
        generator = rng.generator(self._training.seed, "condition", micro_step)
        blank = base.family.blank_text(self._work.transformer, batch, base.text_tokens)
        text = {name: torch.randn(each.shape, generator=generator) for name, each in blank.items()}
        sigmas = torch.rand(batch, generator=generator).to(self._on)
        return [Condition(sigmas, {name: each.to(self._on, self._work.dtype) for name, each in text.items()})]

    @property
    def _training(self) -> TrainingConfig:
        return self._work.config.training
