"""One training step: noise the latents, predict the velocity, compare, go back, update.

The memory simulator runs these very functions on fake tensors, so they only know modules and tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fluxtune.flux.families import Family, Text
from fluxtune.flux.objective import flow_matching_loss, interpolate, velocity_target
from fluxtune.lora.adapter import adapter_disabled


@dataclass(frozen=True)
class Learner:
    """What a step works on.

    Attributes:
        dtype: precision of the transformer's input.
        guidance: None for models without a guidance embedding.
        max_grad_norm: 0 never clips.
    """

    family: Family
    transformer: Any
    optimizer: Any
    accelerator: Any
    parameters: list[torch.nn.Parameter]
    dtype: torch.dtype
    guidance: float | None
    max_grad_norm: float


@dataclass(frozen=True)
class MicroBatch:
    """Samples of one size, on the device.

    Attributes:
        latents: ``[batch, features, h, w]``, patchified.
        noise: same shape.
        sigmas: ``[batch]``.
        text: embeddings of the captions, ``[batch, ...]`` each.
        weights: ``[batch, 1, h, w]``, how much each place counts in ``learn``; None is 1 everywhere.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    sigmas: torch.Tensor
    text: Text
    weights: torch.Tensor | None = None


def learn(learner: Learner, batch: MicroBatch) -> torch.Tensor:
    """Forward and backward of the flow-matching loss; returns the loss, detached."""
    target = velocity_target(batch.latents, batch.noise)
    loss = flow_matching_loss(velocity(learner, batch), target, batch.weights)
    learner.accelerator.backward(loss)
    return loss.detach()


def preserve(learner: Learner, batch: MicroBatch, weight: float) -> torch.Tensor:
    """Forward and backward that hold the model to the base model's own velocity on ``batch``; returns that loss.

    Two backward passes, this and ``learn``, give the gradient of the sum in half the memory.
    """
    with torch.no_grad(), adapter_disabled(learner.transformer):
        target = velocity(learner, batch)
    loss = flow_matching_loss(velocity(learner, batch), target)
    learner.accelerator.backward(weight * loss)
    return loss.detach()


def velocity(learner: Learner, batch: MicroBatch) -> torch.Tensor:
    """The model's velocity at the noised batch, in the precision of training."""
    noisy = interpolate(batch.latents, batch.noise, batch.sigmas).to(learner.dtype)
    with learner.accelerator.autocast():
        return learner.family.forward(learner.transformer, noisy, batch.sigmas, batch.text, learner.guidance)


def clip(learner: Learner) -> torch.Tensor:
    """Clip the gathered gradients; returns their norm before."""
    limit = learner.max_grad_norm or float("inf")
    norm: torch.Tensor = learner.accelerator.clip_grad_norm_(learner.parameters, limit)
    return norm


def update(learner: Learner) -> None:
    """Step the optimizer, clear the gradients."""
    learner.optimizer.step()
    discard(learner)


def discard(learner: Learner) -> None:
    """Clear the gradients, whatever they are."""
    learner.optimizer.zero_grad(set_to_none=True)


def has_finite_weights(learner: Learner) -> bool:
    """Whether the adapter's are; gradients that are finite can still move them out of range."""
    weights = [parameter.detach() for parameter in learner.parameters]
    return bool(torch.nn.utils.get_total_norm(weights, norm_type=float("inf")).isfinite())
