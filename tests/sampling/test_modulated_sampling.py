from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from diffusers import FluxPipeline
from PIL import Image
from safetensors.torch import save_file
from stock_flux import LAYERS, PROMPT, by_hand, lora_tensors

from fluxtune.config.memory import MemoryConfig
from fluxtune.lora.use import LoraUse
from fluxtune.sampling.generate import sample
from fluxtune.sampling.request import SampleRequest

Requests = Callable[..., SampleRequest]
Stock = Callable[[], FluxPipeline]
EMBEDDERS = ("time_text_embed.timestep_embedder.linear_1", "time_text_embed.text_embedder.linear_2")
MODULATION = ("transformer_blocks.0.norm1.linear", "single_transformer_blocks.1.norm.linear", "norm_out.linear")
AHEAD = MemoryConfig(base_precision="fp32", text_precision="fp32", modulation="ahead")


def pixels(picture: Path | Image.Image) -> np.ndarray:
    return np.asarray(Image.open(picture) if isinstance(picture, Path) else picture)


@pytest.mark.parametrize("layers", [LAYERS, EMBEDDERS, MODULATION], ids=["attention", "embedders", "modulation"])
def test_pictures_with_and_without_a_lora_equal_the_stock_pipelines(
    request_for: Requests, stock: Stock, tmp_path: Path, layers: tuple[str, ...]
) -> None:
    lora = tmp_path / "mug.safetensors"
    save_file(lora_tensors(stock(), 1, layers), lora, metadata={"format": "pt"})
    prompts = (PROMPT, "a green star")
    made = sample(request_for(prompts=prompts, seeds=(7, 8), loras=(LoraUse(lora, 0.5),), compare=True, memory=AHEAD))
    plain, adapted = stock(), stock()
    adapted.load_lora_weights(lora, adapter_name="mug")
    adapted.set_adapters(["mug"], [0.5])
    expected = [
        by_hand(pipeline, prompt, seed) for prompt in prompts for seed in (7, 8) for pipeline in (plain, adapted)
    ]
    assert all(
        np.array_equal(pixels(ours), pixels(theirs)) for ours, theirs in zip(made.pictures, expected, strict=True)
    )
    assert not np.array_equal(pixels(expected[0]), pixels(expected[1]))
