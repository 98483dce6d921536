"""The shape of the embedded model: FLUX.1-dev's, with fewer, narrower blocks."""

from __future__ import annotations

from diffusers import FluxTransformer2DModel
from torch import nn

from fluxtune.recipes.nano.text import CLIP_WIDTH, T5_WIDTH


def build_transformer() -> FluxTransformer2DModel:
    """3.2 million weights; modulation and output start at zero, so every block starts as the identity."""
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=2,
        num_single_layers=5,
        attention_head_dim=36,
        num_attention_heads=4,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(8, 14, 14),
    )
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
            if name == "proj_out" or name.endswith("norm_out.linear"):
                nn.init.zeros_(module.weight)
            elif ".norm" in name:
                nn.init.normal_(module.weight, std=0.01)
    return model
