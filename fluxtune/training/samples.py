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
class Condition:
    """What a forward call is told beside its pictures, on the device: ``sigmas [batch]`` and the captions' text."""

    sigmas: torch.Tensor
    text: Text


@dataclass(frozen=True)
class Samples:
    """Everything a micro-step needs from the data.

    Attributes:
        subject: the batch to learn from.
        preserved: the batch on which the base model's output is kept, or None.
        epoch: how often the data has been gone through.
    """

    subject: MicroBatch
    preserved: MicroBatch | None
    epoch: int


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
        batch, examples = self._drawn(micro_step)
        told, *guarded = self._conditions(micro_step, batch, examples)
        latents = torch.stack([self._prepared.latents.read(example.latents)["latents"] for example in examples])
        weights = self._weights(examples, latents)
        subject = self._micro_batch(latents, told, batch.draws, "subject", weights)
        preserved = self._preserved(guarded[0], batch.draws, subject) if guarded else None
        return Samples(subject, preserved, batch.epoch)

    def pictures(self, micro_step: int) -> list[str]:
        """The pictures that one micro-step learns from, by their paths."""
        return [str(example.picture.path) for example in self._drawn(micro_step)[1]]

    def epoch(self, micro_step: int) -> int:
        """How often the data has been gone through before a micro-step."""
        return self._drawn(micro_step)[0].epoch

    def conditions(self, micro_step: int) -> list[Condition]:
        """Those of one micro-step, the subject's and then, where something is preserved, that batch's: as in ``at``,
        without a look at the pictures."""
        return self._conditions(micro_step, *self._drawn(micro_step))

    def _drawn(self, micro_step: int) -> tuple[Batch, list[Example]]:
        batch = self._order.at(micro_step)
        return batch, [self._prepared.examples[index] for index in batch.indices]

    def _conditions(self, micro_step: int, batch: Batch, examples: list[Example]) -> list[Condition]:
        preservation, draws = self._config.training.preservation, batch.draws
        captions = [self._caption(example, draw) for example, draw in zip(examples, draws, strict=True)]
        subject = Condition(self._sigmas(examples[0].tokens, draws, "subject"), self._texts(captions))
        if preservation.method == "none" or micro_step % preservation.every:
            return [subject]
        if preservation.method == "output":
            captions = [
                self._chosen(preservation.prompts, draw) if preservation.prompts else example.class_caption or ""
                for example, draw in zip(examples, draws, strict=True)
            ]
            return [subject, Condition(subject.sigmas, self._texts(captions))]
        priors = self._priors_of(draws)
        sigmas = self._sigmas(priors[0].latents[0].numel(), draws, "prior")
        return [subject, Condition(sigmas, self._texts([prior.prompt for prior in priors]))]

    def _preserved(self, told: Condition, draws: tuple[int, ...], subject: MicroBatch) -> MicroBatch:
        if self._config.training.preservation.method == "output":
            return MicroBatch(subject.latents, subject.noise, told.sigmas, told.text)
        latents = torch.stack([prior.latents for prior in self._priors_of(draws)])
        return self._micro_batch(latents, told, draws, "prior")

    def _priors_of(self, draws: tuple[int, ...]) -> list[Prior]:
        return [self._priors[self._number("prior", draw) % len(self._priors)] for draw in draws]

    def _micro_batch(
        self,
        latents: torch.Tensor,
        told: Condition,
        draws: tuple[int, ...],
        stream: str,
        weights: torch.Tensor | None = None,
    ) -> MicroBatch:
        seed, device = self._config.training.seed, self._device
        noise = torch.stack(
            [torch.randn(latents.shape[1:], generator=rng.generator(seed, stream, "noise", draw)) for draw in draws]
        )
        weights = None if weights is None else weights.to(device)
        return MicroBatch(latents.to(device), noise.to(device), told.sigmas, told.text, weights)

    def _sigmas(self, tokens: int, draws: tuple[int, ...], stream: str) -> torch.Tensor:
        training = self._config.training
        return torch.stack(
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
        ).to(self._device)

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
