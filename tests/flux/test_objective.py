from __future__ import annotations

import math
from statistics import median, pstdev

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from fluxtune.flux.objective import (
    TimestepSampling,
    flow_matching_loss,
    flux_shift,
    interpolate,
    sigma_of,
    velocity_target,
)

DRAWS = 4000
TOKENS_OF_512_PX, TOKENS_OF_1024_PX = 32 * 32, 64 * 64


def drawn(sampling: TimestepSampling, tokens: int = TOKENS_OF_1024_PX, **settings: float) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    return [float(sigma_of(generator, sampling, tokens, **settings)) for _ in range(DRAWS)]


def logits(sigmas: list[float]) -> list[float]:
    return [math.log(sigma / (1 - sigma)) for sigma in sigmas]


def test_the_path_begins_at_the_picture_and_ends_at_the_noise() -> None:
    latents, noise = torch.randn(2, 64, 2, 3), torch.randn(2, 64, 2, 3)
    noisy = interpolate(latents, noise, torch.tensor([0.0, 1.0]))
    assert torch.equal(noisy[0], latents[0])
    assert torch.equal(noisy[1], noise[1])


def test_the_target_is_the_derivative_of_the_path() -> None:
    latents, noise = torch.randn(1, 64, 2, 3).double(), torch.randn(1, 64, 2, 3).double()
    sigma = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    derivative = torch.autograd.functional.jacobian(lambda s: interpolate(latents, noise, s), sigma)
    assert torch.allclose(derivative[..., 0], velocity_target(latents, noise))


def test_the_loss_of_bfloat16_predictions_is_taken_in_float32() -> None:
    velocity = torch.full((1, 4096), 1.0, dtype=torch.bfloat16)
    loss = flow_matching_loss(velocity, torch.full((1, 4096), 0.999))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(1e-6, rel=1e-3)


def test_uniform_noise_levels_fill_the_interval_evenly() -> None:
    sigmas = sorted(drawn("uniform"))
    gaps = max(abs(sigma - (index + 0.5) / DRAWS) for index, sigma in enumerate(sigmas))
    assert gaps < 0.03


def test_logit_normal_noise_levels_have_the_asked_mean_and_deviation() -> None:
    found = logits(drawn("logit-normal", logit_mean=0.3, logit_std=1.1))
    assert median(found) == pytest.approx(0.3, abs=0.06)
    assert pstdev(found) == pytest.approx(1.1, abs=0.05)


def test_shift_moves_each_logit_normal_draw_by_its_factor() -> None:
    # k s / (1 + (k - 1) s) adds log k to the logit.
    moved = zip(logits(drawn("shift", shift=3.0)), logits(drawn("logit-normal")), strict=True)
    assert all(after - before == pytest.approx(math.log(3.0), abs=1e-3) for after, before in moved)


@pytest.mark.parametrize("tokens", [64, 256, TOKENS_OF_512_PX, TOKENS_OF_1024_PX])
def test_flux_shift_is_the_samplers_own_shift_at_that_size(tokens: int) -> None:
    mu = calculate_shift(tokens)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    plain = torch.tensor(drawn("logit-normal"))
    expected = scheduler.time_shift(mu, 1.0, plain)
    assert flux_shift(tokens) == pytest.approx(math.exp(mu))
    assert torch.allclose(torch.tensor(drawn("flux-shift", tokens)), expected, atol=1e-6)


def test_larger_pictures_are_trained_at_more_noise() -> None:
    small, large = median(drawn("flux-shift", TOKENS_OF_512_PX)), median(drawn("flux-shift", TOKENS_OF_1024_PX))
    assert small == pytest.approx(flux_shift(TOKENS_OF_512_PX) / (1 + flux_shift(TOKENS_OF_512_PX)), abs=0.02)
    assert large == pytest.approx(math.exp(1.15) / (1 + math.exp(1.15)), abs=0.02)
    assert small < large
