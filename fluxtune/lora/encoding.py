"""Layers of diffusers' transformer and text encoders -> the tensors of a LoRA file in some convention.

Where a checkpoint fuses layers (query, key, value), their A are stacked and their B stand on a diagonal of blocks: the
same change exactly, of the sum of their ranks. To a lower rank they are cut down by ``low_rank.compressed``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from fluxtune.flux.layer_names import LayerNames, Layers
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.conventions import Convention
from fluxtune.lora.low_rank import compressed


@dataclass(frozen=True)
class Encoded:
    """The tensors of a file.

    Attributes:
        left_out: layers that the convention has no names for.
        errors: for layers of the file that were cut down, the relative error of that.
    """

    tensors: dict[str, torch.Tensor]
    left_out: list[str] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)


def encoded(
    layers: Mapping[str, LoraLayer],
    names: LayerNames,
    convention: Convention,
    dtype: torch.dtype,
    max_rank: int | None = None,
) -> Encoded:
    """The tensors that say the same as ``layers``.

    Args:
        layers: by diffusers' path, with the part of the model in front.
        max_rank: of a layer of the file; None for whatever is exact.
    """
    tensors: dict[str, torch.Tensor] = {}
    left_out = [path for path in layers if path.partition(".")[0] not in convention.prefixes]
    errors: dict[str, float] = {}
    done: set[str] = set(left_out)
    for path, layer in layers.items():
        if path in done:
            continue
        part = path.partition(".")[0]
        target = names.fused(path) if convention.fused else Layers(path.partition(".")[2], (path,))
        done.update(target.parts)
        present = {each: layers[each] for each in target.parts if each in layers}
        whole = _stacked(present, target, names) if len(target.parts) > 1 else layer
        if target.swapped:
            whole = LoraLayer(whole.a, torch.cat(whole.b.chunk(2)[::-1]), whole.scale)
        key = convention.prefixes[part] + target.name.replace(".", convention.separator)
        if max_rank is not None and whole.a.shape[0] > max_rank:
            whole, errors[key] = compressed(whole, max_rank)
        tensors |= _tensors(key, whole, convention, dtype)
    return Encoded(tensors, left_out, errors)


def rows_of(path: str, layer: LoraLayer, names: LayerNames, convention: Convention) -> int:
    """Rows of the B of a file's layer: where layers are fused, those of all of them."""
    target = names.fused(path) if convention.fused else None
    if target is None or len(target.parts) == 1:
        return int(layer.b.shape[0])
    return sum(names.width(part) for part in target.parts) * int(layer.a.shape[1])


def _tensors(key: str, layer: LoraLayer, convention: Convention, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    a, b = layer.a.to("cpu", dtype).contiguous(), layer.b.float()
    if not convention.alpha:
        return {
            f"{key}.{convention.down}": a,
            f"{key}.{convention.up}": (b * layer.scale).to("cpu", dtype).contiguous(),
        }
    # float32: bf16 has no integers above 256, and the alpha of stacked layers is larger.
    return {
        f"{key}.{convention.down}": a,
        f"{key}.{convention.up}": b.to("cpu", dtype).contiguous(),
        f"{key}.alpha": torch.tensor(layer.scale * layer.a.shape[0], dtype=torch.float32),
    }


def _stacked(present: Mapping[str, LoraLayer], target: Layers, names: LayerNames) -> LoraLayer:
    """One layer that is fused of several; the rows of those that were not trained stay zero."""
    scales = {layer.scale for layer in present.values()}
    common = scales.pop() if len(scales) == 1 else None
    hidden = next(iter(present.values())).a.shape[1]
    heights = [names.width(path) * hidden for path in target.parts]
    b = torch.zeros(sum(heights), sum(layer.a.shape[0] for layer in present.values()))
    row = column = 0
    for path, height in zip(target.parts, heights, strict=True):
        if layer := present.get(path):
            rank = layer.a.shape[0]
            b[row : row + height, column : column + rank] = layer.b.float() * (layer.scale if common is None else 1.0)
            column += rank
        row += height
    a = torch.cat([present[path].a.float() for path in target.parts if path in present])
    return LoraLayer(a, b, 1.0 if common is None else common)
