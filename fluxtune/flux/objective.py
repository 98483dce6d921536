"""What FLUX is trained to do: flow matching on straight paths from picture to noise.

Rectified flow (arXiv 2209.03003) as in Stable Diffusion 3 (arXiv 2403.03206, section 2 and 3.1): along
``x_sigma = (1 - sigma) * latents + sigma * noise`` the velocity is constant, ``noise - latents``: the target.
"""

from __future__ import annotations

from typing import Literal

import torch

from fluxtune.flux.shift import flux_shift

TimestepSampling = Literal["uniform", "logit-normal", "shift", "flux-shift"]


def interpolate(latents: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """The noisy latents at noise levels ``sigmas`` (``[batch]``, 0 the picture, 1 pure noise)."""
    sigmas = sigmas.view(-1, *[1] * (latents.ndim - 1))
    return (1.0 - sigmas) * latents + sigmas * noise


def velocity_target(latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The velocity from picture to noise, same shape as both."""
    return noise - latents


def flow_matching_loss(
    velocity: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared error in float32, a scalar.

    Args:
        weights: ``[batch, 1, h, w]`` on the grid of tokens: how much each place of each picture counts.
    """
    if weights is None:
        return torch.nn.functional.mse_loss(velocity.float(), target.float())
    return (weights * (velocity.float() - target.float()).square()).mean()


def mask_weights(mask: torch.Tensor, unmasked: float) -> torch.Tensor:
    """How much each place counts under a mask ``[1, h, w]`` from 0 to 1: ``unmasked`` where it is 0, 1 where it is 1,
    then scaled to a mean of 1, so that a picture with a small subject counts as much as any other. Where nothing of
    the mask is left (a crop beside the subject), it stays ``unmasked`` all over."""
    weights = unmasked + (1.0 - unmasked) * mask
    return weights / weights.mean() if bool(mask.any()) else weights


def shifted(sigmas: torch.Tensor, shift: float) -> torch.Tensor:
    """Move noise levels towards 1: ``k s / (1 + (k - 1) s)`` (arXiv 2403.03206, equation 23)."""
    return shift * sigmas / (1.0 + (shift - 1.0) * sigmas)


def sigma_of(
    generator: torch.Generator,
    sampling: TimestepSampling,
    tokens: int,
    *,
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
    shift: float = 3.0,
) -> torch.Tensor:
    """One noise level in (0, 1), a scalar tensor, drawn from ``generator``.

    Args:
        sampling: ``uniform``; ``logit-normal``, ``sigmoid(mean + std * normal)`` (arXiv 2403.03206, equation 19);
            ``shift``, that moved by ``shift``; ``flux-shift``, that moved by ``flux_shift(tokens)``.
        tokens: packed tokens of the picture.
    """
    if sampling == "uniform":
        return torch.rand((), generator=generator)
    sigma = torch.sigmoid(logit_mean + logit_std * torch.randn((), generator=generator))
    if sampling == "shift":
        return shifted(sigma, shift)
    if sampling == "flux-shift":
        return shifted(sigma, flux_shift(tokens))
    return sigma
