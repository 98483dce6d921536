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
    modulation: Literal["card", "ahead", "auto"] = setting(
        "card",
        "Where the modulation (adaLN) weights live, 27 % of the model: card; ahead, in system memory and unquantised, "
        "what they answer being computed ahead; auto, ahead unless the LoRA trains the embedders before them.",
    )
    recompute: Literal["none", "all"] = setting(
        "all", "Gradient checkpointing: all recomputes every block in the backward pass, none keeps everything."
    )
