"""The tiny FLUX as anyone would use it with diffusers alone, and LoRA tensors for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FluxPipeline

PROMPT = "a red ball on a blue background"
SIZE = (64, 96)
LAYERS = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.proj_mlp")


def lora_tensors(pipeline: FluxPipeline, seed: int, layers: tuple[str, ...] = LAYERS) -> dict[str, torch.Tensor]:
    """Random rank-4 pairs for some layers, large enough to change a picture."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for path in layers:
        layer = pipeline.transformer.get_submodule(path)
        tensors[f"transformer.{path}.lora_A.weight"] = torch.randn(4, layer.in_features, generator=generator)
        tensors[f"transformer.{path}.lora_B.weight"] = torch.randn(layer.out_features, 4, generator=generator)
    return tensors


def by_hand(pipeline: FluxPipeline, prompt: str = PROMPT, seed: int = 7, **changes: Any) -> Any:
    """The picture as diffusers' documentation would make it."""
    pipeline.set_progress_bar_config(disable=True)
    usual: dict[str, Any] = {
        "width": SIZE[0],
        "height": SIZE[1],
        "num_inference_steps": 2,
        "guidance_scale": 3.5,
        "max_sequence_length": pipeline.tokenizer_2.model_max_length,
    }
    generator = torch.Generator("cpu").manual_seed(seed)
    return pipeline(prompt, generator=generator, **{**usual, **changes}).images[0]
