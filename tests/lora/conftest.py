"""Fixtures: the tiny FLUX's transformer, fresh for each test, and some input for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel

from fluxtune.flux.families import FLUX1

Velocity = Callable[[Any], torch.Tensor]


@pytest.fixture(scope="session")
def fresh(tiny_flux: Path) -> Callable[[], FluxTransformer2DModel]:
    """Makes the transformer as diffusers loads it, frozen and in evaluation mode."""
    return lambda: FluxTransformer2DModel.from_pretrained(tiny_flux / "transformer").requires_grad_(False).eval()


@pytest.fixture
def transformer(fresh: Callable[[], FluxTransformer2DModel]) -> FluxTransformer2DModel:
    """A transformer without an adapter."""
    return fresh()


@pytest.fixture(scope="session")
def velocity() -> Velocity:
    """What a transformer answers to one fixed noisy picture and text."""
    generator = torch.Generator().manual_seed(3)
    noisy = torch.randn(1, 64, 4, 6, generator=generator)
    text = {
        "prompt_embeds": torch.randn(1, 6, 32, generator=generator),
        "pooled_prompt_embeds": torch.randn(1, 32, generator=generator),
    }

    def answer(transformer: Any) -> torch.Tensor:
        with torch.no_grad():
            return FLUX1.forward(transformer, noisy, torch.tensor([0.6]), text, 1.0)

    return answer
