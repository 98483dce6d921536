"""``[lora]``: the adapter that is trained."""

from __future__ import annotations

from typing import Literal

from fluxtune.config.base import Section, setting

TargetGroup = Literal["attention", "attention+mlp", "all-linear"]
LayerGroup = Literal["double", "single", "outside", "attention", "mlp", "modulation", "text"]
"""Groups of layers that a LoRA can act on with a scale of their own."""


class LoraConfig(Section):
    """Low-rank adapters (arXiv 2106.09685) on layers of the transformer."""

    rank: int = setting(16, "Rank of the adapter: its capacity, and the size of its file.", ge=1, le=1024)
    alpha: float | None = setting(None, "Scale of the adapter times its rank; unset means alpha = rank.", gt=0)
    targets: TargetGroup | list[str] = setting(
        "attention",
        "Layers that get an adapter: attention, attention+mlp, all-linear, or a list of patterns of layer names "
        "(for instance 'transformer_blocks.*.attn.*').",
    )
    dropout: float = setting(0.0, "Dropout on the adapter's input.", ge=0.0, lt=1.0)
    rank_stabilized: bool = setting(False, "Scale by alpha / sqrt(rank) instead of alpha / rank (arXiv 2312.03732).")
    init_from: str | None = setting(
        None,
        "LoRA file to start from instead of an empty adapter; the folder of a run or a checkpoint stands for its LoRA.",
        path="path",
    )
