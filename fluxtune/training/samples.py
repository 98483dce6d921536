"""Micro-batches as a pure function of (seed, micro-step): which pictures, noise, noise level and text."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fluxtune import rng
from fluxtune.config.schema import Config
from fluxtune.dataset.batches import Batch, Batches
from fluxtune.flux.families import Text
from fluxtune.flux.objective import mask_weights, sigma_of
from fluxtune.training.examples import Example, Prepared
from fluxtune.training.prior import Prior
from fluxtune.training.step import MicroBatch

EMPTY_CAPTION = ""


@dataclass(frozen=True)
class Samples:
    """Everything a micro-step needs from the data.

    Attributes:
        subject: the batch to learn from.
        preserved: the batch on which the base model's output is kept, or None.
        epoch: how often the data has been gone through.
        pictures: the pictures in ``subject``, by their paths.
    """

    subject: MicroBatch
    preserved: MicroBatch | None
    epoch: int
    pictures: tuple[str, ...]


class SampleSource:
    """Draws the samples of a run. ``at(n)`` never depends on what was drawn before."""

    def __init__(self, config: Config, prepared: Prepared, priors: list[Prior], device: str) -> None:
        self._config = config
        self._prepared = prepared
        self._priors = priors
        self._device = device
        self._order = Batches(
            [
                (index, (example.width, example.height), example.picture.repeats)
                for index, example in enumerate(prepared.examples)
            ],
            config.training.batch_size,
            config.training.seed,
        )

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps in which every picture is seen."""
        return self._order.per_epoch / self._config.training.accumulation

    def at(self, micro_step: int) -> Samples:
        """The samples of one micro-step, on the device."""
        batch = self._order.at(micro_step)
        examples = [self._prepared.examples[index] for index in batch.indices]
        latents = torch.stack([self._prepared.latents.read(example.latents)["latents"] for example in examples])
        captions = [self._caption(example, draw) for example, draw in zip(examples, batch.draws, strict=True)]
        subject = self._micro_batch(latents, captions, batch.draws, "subject", self._weights(examples, latents))
        guarded = micro_step % self._config.training.preservation.every == 0
        preserved = self._preserved(examples, batch, subject) if guarded else None
        return Samples(subject, preserved, batch.epoch, tuple(str(example.picture.path) for example in examples))

    def _preserved(self, examples: list[Example], batch: Batch, subject: MicroBatch) -> MicroBatch | None:
        preservation = self._config.training.preservation
        if preservation.method == "output":
            captions = [
                self._chosen(preservation.prompts, draw) if preservation.prompts else example.class_caption or ""
                for example, draw in zip(examples, batch.draws, strict=True)
            ]
            return MicroBatch(subject.latents, subject.noise, subject.sigmas, self._texts(captions))
        if preservation.method == "prior":
            priors = [self._priors[self._number("prior", draw) % len(self._priors)] for draw in batch.draws]
            latents = torch.stack([prior.latents for prior in priors])
            return self._micro_batch(latents, [prior.prompt for prior in priors], batch.draws, "prior")
        return None

    def _micro_batch(
        self,
        latents: torch.Tensor,
        captions: list[str],
        draws: tuple[int, ...],
        stream: str,
        weights: torch.Tensor | None = None,
    ) -> MicroBatch:
        training = self._config.training
        tokens = latents.shape[-2] * latents.shape[-1]
        noise = torch.stack(
            [
                torch.randn(latents.shape[1:], generator=rng.generator(training.seed, stream, "noise", draw))
                for draw in draws
            ]
        )
        sigmas = torch.stack(
            [
                sigma_of(
                    rng.generator(training.seed, stream, "sigma", draw),
                    training.timestep_sampling,
                    tokens,
                    logit_mean=training.logit_mean,
                    logit_std=training.logit_std,
                    shift=training.shift,
                )
                for draw in draws
            ]
        )
        device = self._device
        weights = None if weights is None else weights.to(device)
        return MicroBatch(latents.to(device), noise.to(device), sigmas.to(device), self._texts(captions), weights)

    def _weights(self, examples: list[Example], latents: torch.Tensor) -> torch.Tensor | None:
        """``[batch, 1, h, w]``: the mask of each picture times its folder's weight; None where all is 1."""
        if all(example.mask is None and example.picture.weight == 1 for example in examples):
            return None
        weights = torch.ones_like(latents[:, :1])
        for row, example in zip(weights, examples, strict=True):
            if example.mask is not None:
                mask = self._prepared.masks.read(example.mask)["mask"]
                row *= mask_weights(mask, self._config.dataset.unmasked_weight)
            row *= example.picture.weight
        return weights

    def _caption(self, example: Example, draw: int) -> str:
        dropped = rng.uniform(self._config.training.seed, "caption", draw) < self._config.dataset.caption_dropout
        return EMPTY_CAPTION if dropped else example.caption

    def _texts(self, captions: list[str]) -> Text:
        texts = [self._prepared.text(caption) for caption in captions]
        return {name: torch.cat([text[name] for text in texts]).to(self._device) for name in texts[0]}

    def _chosen(self, prompts: list[str], draw: int) -> str:
        return prompts[self._number("prompt", draw) % len(prompts)]

    def _number(self, purpose: str, draw: int) -> int:
        return rng.derive(self._config.training.seed, purpose, draw)
