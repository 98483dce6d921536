"""``[memory]``: what fits the card."""

from __future__ import annotations

from typing import Literal

from fluxtune.config.base import Section, setting


class MemoryConfig(Section):
    """The toggles of the memory tiers."""

    base_precision: Literal["fp32", "bf16", "int8", "nf4"] = setting(
        "bf16", "How the frozen base is held: fp32, bf16, int8 or nf4 (the last two through bitsandbytes)."
    )
    text_precision: Literal["fp32", "bf16", "int8", "nf4"] = setting(
        "bf16", "How the text encoders are held while captions are encoded."
    )
    recompute: Literal["none", "all"] = setting(
        "all", "Gradient checkpointing: all recomputes every block in the backward pass, none keeps everything."
    )
    streamed_blocks: int = setting(
        0,
        "How many of the transformer's blocks live in system memory and are copied to the card ahead of use; spread "
        "evenly, so that the copies hide behind the blocks that stay.",
        ge=0,
    )
    offload_activations: bool = setting(
        False,
        "Whether the inputs of recomputed blocks wait for the backward pass in system memory: 28 MB a block of FLUX.1 "
        "at 1,024 px.",
    )
    vae_tiling: bool = setting(
        False,
        "Whether the VAE goes over pictures larger than 512 px tile by tile: less memory, and a slightly different "
        "picture.",
    )
