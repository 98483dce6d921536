"""LoRAs on the pipelines that make pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fluxtune.lora.attached import set_acting
from fluxtune.lora.opened import Lora, base_of, open_lora, place_in
from fluxtune.lora.use import LoraUse

__all__ = ["Lora", "acting", "apply_to_text_encoder", "apply_to_transformer", "base_of", "open_lora"]


def acting(loras: Mapping[Path, Lora], uses: Sequence[LoraUse]) -> list[Lora]:
    """Opened LoRAs as they are used together."""
    return [replace(loras[use.path], scale=use.scale, groups=use.groups) for use in uses]


def apply_to_transformer(pipeline: Any, loras: Sequence[Lora]) -> None:
    """Make exactly these LoRAs act on the pipeline's transformer, each at its scale.

    It can be called again with others, or with other scales.
    """
    _apply(pipeline.transformer, "transformer", loras)


def apply_to_text_encoder(pipeline: Any, loras: Sequence[Lora]) -> None:
    """Make exactly these LoRAs act on the pipeline's text encoders, each at its scale."""
    for part, module in pipeline.components.items():
        if part.startswith("text_encoder") and isinstance(module, nn.Module):
            _apply(module, part, loras)


def _apply(module: Any, part: str, loras: Sequence[Lora]) -> None:
    tensors = {name.replace(".base_layer.", ".") for name, _ in module.named_parameters()}
    acting = {
        f"{number}-{lora.sha256}": {
            place_in(tensors, path): layer for path, layer in lora.acting().items() if path.startswith(f"{part}.")
        }
        for number, lora in enumerate(loras)
    }
    set_acting(module, {name: layers for name, layers in acting.items() if layers})
