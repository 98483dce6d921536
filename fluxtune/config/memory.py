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
    cache_quantized: bool = setting(
        False,
        "Keep quantised weights in the cache, so that the next start takes seconds; FLUX.1 takes 12 GB of disk in "
        "8 bits, 6 GB in NF4.",
    )
