"""A FLUX.1 model of middle size on disk, with random weights: large enough that its activations weigh something."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel

from fluxtune import nano
from fluxtune.flux.base import Base, base_in

TEXT_TOKENS = 64


def small_flux(folder: Path, double: int = 2, single: int = 3, heads: int = 4) -> Base:
    """With the embedded model's VAE and text encoders; weights are stored in float16, so that loading copies them."""
    shutil.copytree(nano.model_folder(), folder, ignore=shutil.ignore_patterns("transformer"))
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=64,
        num_attention_heads=heads,
        joint_attention_dim=128,
        pooled_projection_dim=64,
        guidance_embeds=True,
        axes_dims_rope=(8, 28, 28),
    )
    transformer.half().save_pretrained(folder / "transformer")
    tokenizer = folder / "tokenizer_2" / "tokenizer_config.json"
    settings = json.loads(tokenizer.read_text())
    tokenizer.write_text(json.dumps({**settings, "model_max_length": TEXT_TOKENS}))
    return base_in(folder, str(folder))
