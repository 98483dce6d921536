"""Batches, negative prompts and start pictures, held against the stock pipelines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxPipeline
from PIL import Image

from fluxtune.config.memory import MemoryConfig
from fluxtune.flux.base import Base
from fluxtune.flux.denoise import (
    Request,
    Start,
    batches_looking_ahead,
    encode_prompt,
    generate_latents,
    generate_together,
)
from fluxtune.flux.families import Text
from fluxtune.flux.load import image_pipeline, load_text_pipeline, load_transformer, load_vae

FP32 = MemoryConfig(base_precision="fp32", text_precision="fp32")
REQUEST = Request(prompt="a red star", width=80, height=96, steps=4, guidance=3.5, seed=11)


@pytest.fixture(scope="module")
def text_of(base: Base) -> Callable[[str], Text]:
    encoders = load_text_pipeline(base, FP32, torch.float32, "cpu")
    return lambda prompt: encode_prompt(base, encoders, prompt)


def pipeline_of(base: Base, **memory: Any) -> Any:
    transformer = load_transformer(base, FP32.model_copy(update=memory), torch.float32, "cpu")
    return image_pipeline(base, transformer, load_vae(base, torch.float32, "cpu"))


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A start picture of another shape than is wanted."""
    path = tmp_path / "start.png"
    Image.linear_gradient("L").resize((200, 90)).convert("RGB").save(path)
    return path


def by_hand(base: Base, tiny_flux: Path, kind: Any, request: Request, **more: Any) -> Image.Image:
    stock = kind.from_pretrained(tiny_flux)
    stock.set_progress_bar_config(disable=True)
    return stock(
        request.prompt,
        width=request.width,
        height=request.height,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        max_sequence_length=base.text_tokens,
        generator=torch.Generator().manual_seed(request.seed),
        **more,
    ).images[0]


def test_a_negative_prompt_is_the_stock_pipelines_true_guidance(
    base: Base, text_of: Callable[[str], Text], tiny_flux: Path
) -> None:
    request = replace(REQUEST, negative_prompt="blurry", true_guidance=2.5)
    (ours,) = generate_together(base, pipeline_of(base), text_of, [request])
    theirs = by_hand(base, tiny_flux, FluxPipeline, request, negative_prompt="blurry", true_cfg_scale=2.5)
    assert ours.tobytes() == theirs.tobytes()
    (plain,) = generate_together(base, pipeline_of(base), text_of, [REQUEST])
    assert ours.tobytes() != plain.tobytes()


@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
def test_a_start_picture_is_painted_over_as_by_the_stock_pipeline(
    base: Base, text_of: Callable[[str], Text], tiny_flux: Path, start: Path, strength: float
) -> None:
    request, steps = replace(REQUEST, start=Start(start, strength)), []
    (ours,) = generate_together(base, pipeline_of(base), text_of, [request], lambda: steps.append(True))
    # The central part that has the wanted shape: 75 of the 200 pixels across.
    cut = Image.open(start).resize((80, 96), Image.Resampling.LANCZOS, box=(62.5, 0, 137.5, 90))
    theirs = by_hand(base, tiny_flux, FluxImg2ImgPipeline, request, image=cut, strength=strength)
    assert ours.tobytes() == theirs.tobytes()
    assert len(steps) == request.steps_taken


def test_the_less_strength_the_nearer_the_picture_is_to_its_start(
    base: Base, text_of: Callable[[str], Text], start: Path
) -> None:
    pipeline = pipeline_of(base)
    (untouched,) = generate_together(base, pipeline, text_of, [replace(REQUEST, steps=50, start=Start(start, 0.001))])
    far, near = (
        generate_together(base, pipeline, text_of, [replace(REQUEST, steps=10, start=Start(start, strength))])[0]
        for strength in (1.0, 0.2)
    )
    reached = np.asarray(untouched, dtype=float)
    assert np.abs(np.asarray(near) - reached).mean() < np.abs(np.asarray(far) - reached).mean()


def test_pictures_of_a_batch_are_those_that_are_made_alone(base: Base, text_of: Callable[[str], Text]) -> None:
    pipeline = pipeline_of(base)
    requests = [REQUEST, replace(REQUEST, prompt="a green boat", seed=12), replace(REQUEST, seed=13)]
    together = generate_together(base, pipeline, text_of, requests)
    for picture, request in zip(together, requests, strict=True):
        (alone,) = generate_together(base, pipeline, text_of, [request])
        assert np.abs(np.asarray(picture, dtype=int) - np.asarray(alone, dtype=int)).max() <= 1


@pytest.mark.parametrize(
    "changes", [{}, {"negative_prompt": "blurry", "true_guidance": 2.0}], ids=["plain", "negative"]
)
def test_the_modulation_of_a_batch_is_computed_ahead_in_one_pass(
    base: Base, text_of: Callable[[str], Text], passes: Callable[[], int], start: Path, changes: dict[str, Any]
) -> None:
    request = replace(REQUEST, start=Start(start, 0.6), **changes)
    batch = (request, replace(request, prompt="a green boat", seed=12))
    pipeline = pipeline_of(base, modulation="ahead")
    made = [
        generate_together(base, pipeline, text_of, each)
        for each in batches_looking_ahead(base, pipeline, [batch], text_of)
    ]
    layers = sum(1 for _ in pipeline.transformer.modulation._layers)
    assert passes() == layers
    expected = generate_together(base, pipeline_of(base), text_of, batch)
    assert [picture.tobytes() for picture in made[0]] == [picture.tobytes() for picture in expected]


def test_latents_are_those_of_the_picture(base: Base, text_of: Callable[[str], Text]) -> None:
    pipeline = pipeline_of(base)
    latents = generate_latents(base, pipeline, text_of(REQUEST.prompt), REQUEST)
    with torch.no_grad():
        pixels = base.family.decode_image(pipeline.vae, latents)
    (picture,) = generate_together(base, pipeline, text_of, [REQUEST])
    expected = ((pixels[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1) * 255).round()
    assert np.array_equal(np.asarray(picture, dtype=float), expected.numpy())
