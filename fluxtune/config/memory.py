"""``[memory]``: what fits the card."""

from __future__ import annotations

from typing import Literal

from fluxtune.config.base import Section, setting

Precision = Literal["fp32", "bf16", "int8", "int8-weights", "fp8", "nf4"]


class MemoryConfig(Section):
    """The toggles of the memory tiers."""

    base_precision: Precision = setting(
        "bf16",
        "How the frozen base is held: fp32, bf16, int8 (bitsandbytes; multiplies in 8 bits on a card), int8-weights or "
        "fp8 (8 bits, multiplied in training.precision), or nf4 (4 bits, bitsandbytes). docs/precisions.md compares "
        "them.",
    )
    text_precision: Precision = setting("bf16", "How the text encoders are held while captions are encoded.")
    recompute: Literal["none", "all"] = setting(
        "all", "Gradient checkpointing: all recomputes every block in the backward pass, none keeps everything."
    )
