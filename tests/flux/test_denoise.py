from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.utils.torch_utils import randn_tensor

from fluxtune.config.memory import MemoryConfig
from fluxtune.flux.base import Base
from fluxtune.flux.denoise import Request, encode_prompt, generate, generate_latents
from fluxtune.flux.latents import pack, patchify
from fluxtune.flux.load import image_pipeline, load_text_pipeline, load_transformer, load_vae
from fluxtune.flux.objective import velocity_target

FP32 = MemoryConfig(base_precision="fp32", text_precision="fp32")
REQUEST = Request(prompt="a red star", width=160, height=96, steps=3, guidance=3.5, seed=11)


@pytest.fixture(scope="module")
def text(base: Base) -> dict[str, torch.Tensor]:
    return encode_prompt(base, load_text_pipeline(base, FP32, torch.float32, "cpu"), REQUEST.prompt)


@pytest.fixture
def pipeline(base: Base) -> Any:
    transformer = load_transformer(base, FP32, torch.float32, "cpu")
    return image_pipeline(base, transformer, load_vae(base, torch.float32, "cpu"))


def test_a_model_that_answers_noise_minus_latents_leads_the_sampler_to_the_latents(
    base: Base, pipeline: Any, text: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = torch.rand(1, 3, REQUEST.height, REQUEST.width) * 2 - 1
    with torch.no_grad():
        latents = base.family.encode_image(pipeline.vae, pixels, torch.Generator().manual_seed(0))
    shape = (1, 16, REQUEST.height // 8, REQUEST.width // 8)
    noise = patchify(randn_tensor(shape, generator=torch.Generator().manual_seed(REQUEST.seed)))
    velocity = pack(velocity_target(latents, noise))
    monkeypatch.setattr(pipeline.transformer, "forward", lambda **_: (velocity,))
    assert torch.allclose(generate_latents(base, pipeline, text, REQUEST), latents, atol=1e-5)


def test_a_picture_equals_the_stock_pipelines(
    base: Base, pipeline: Any, text: dict[str, torch.Tensor], tiny_flux: Path
) -> None:
    stock = FluxPipeline.from_pretrained(tiny_flux)
    expected = stock(
        REQUEST.prompt,
        width=REQUEST.width,
        height=REQUEST.height,
        num_inference_steps=REQUEST.steps,
        guidance_scale=REQUEST.guidance,
        max_sequence_length=base.text_tokens,
        generator=torch.Generator().manual_seed(REQUEST.seed),
    ).images[0]
    assert generate(base, pipeline, text, REQUEST).tobytes() == expected.tobytes()


def test_progress_is_reported_after_each_denoising_step(
    base: Base, pipeline: Any, text: dict[str, torch.Tensor]
) -> None:
    steps: list[bool] = []
    generate(base, pipeline, text, REQUEST, lambda: steps.append(True))
    assert len(steps) == REQUEST.steps == REQUEST.steps_taken


def test_latents_are_the_posteriors_sample_shifted_and_scaled(base: Base, pipeline: Any) -> None:
    pixels = torch.rand(1, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        latents = base.family.encode_image(pipeline.vae, pixels, torch.Generator().manual_seed(5))
        posterior = pipeline.vae.encode(pixels).latent_dist
    sample = posterior.mean + posterior.std * torch.randn(
        posterior.mean.shape, generator=torch.Generator().manual_seed(5)
    )
    assert torch.allclose(latents, patchify((sample - 0.1159) * 0.3611), atol=1e-6)


@pytest.mark.parametrize("held", ["bf16", "fp32"])
def test_a_bfloat16_model_paints_from_embeddings_of_any_precision(base: Base, held: str) -> None:
    memory = MemoryConfig(base_precision="bf16", text_precision=held)  # type: ignore[arg-type]
    text = encode_prompt(base, load_text_pipeline(base, memory, torch.bfloat16, "cpu"), REQUEST.prompt)
    transformer = load_transformer(base, memory, torch.bfloat16, "cpu")
    pipeline = image_pipeline(base, transformer, load_vae(base, torch.bfloat16, "cpu"))
    assert generate(base, pipeline, text, REQUEST).size == (REQUEST.width, REQUEST.height)


def test_a_float32_base_under_bfloat16_paints_in_float32(base: Base, text: dict[str, torch.Tensor]) -> None:
    transformer = load_transformer(base, FP32, torch.bfloat16, "cpu")
    pipeline = image_pipeline(base, transformer, load_vae(base, torch.bfloat16, "cpu"))
    assert generate_latents(base, pipeline, text, REQUEST).dtype == torch.float32
