"""DoRA: the direction of the changed weight, at magnitudes of its own (https://arxiv.org/abs/2402.09353).

``m (W + s B A) / |W + s B A|``: the norm is of each row, or of each column in older files of LyCORIS. With ``g`` the
quotient of magnitude and norm, the change of rows is ``g s B A + (g - 1) W``: a low-rank product, and the base's own
rows grown by ``g - 1``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch

from fluxtune.flux.layer_names import Layers
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.low_rank import factors_of
from fluxtune.lora.matrices import UnreadableLora

BaseWeight: TypeAlias = Callable[[str], torch.Tensor]
"""Path of a layer -> its weight ``[out, in]`` in the base model."""


@dataclass(frozen=True)
class Dora:
    """A layer of a file that is a DoRA, shared out among the layers it means.

    Attributes:
        parts: path -> its low-rank product.
        weights: path -> the base's weight.
        gains: path -> magnitude over norm, ``[out, 1]`` or ``[1, in]``.
        of_rows: which of the two.
    """

    parts: Mapping[str, LoraLayer]
    weights: Mapping[str, torch.Tensor]
    gains: Mapping[str, torch.Tensor]
    of_rows: bool

    def exact(self) -> dict[str, tuple[LoraLayer, float]]:
        """Path -> the change as a product and the growth of the base's own rows, and its error, 0; of rows only."""
        return {
            path: (
                LoraLayer(part.a, self.gains[path] * part.b * part.scale, 1.0, (self.gains[path] - 1).flatten()),
                0.0,
            )
            for path, part in self.parts.items()
        }

    def nearest(self, rank: int) -> dict[str, tuple[LoraLayer, float]]:
        """Path -> the nearest low-rank product to all of the change, and its relative error."""
        found = {}
        for path, part in self.parts.items():
            weight, gain = self.weights[path], self.gains[path]
            found[path] = factors_of(gain * _changed(weight, part) - weight, rank)
        return found


def dora(
    name: str, parts: Mapping[str, LoraLayer], magnitude: torch.Tensor, target: Layers, base_weight: BaseWeight | None
) -> Dora:
    """Read a layer.

    Args:
        parts: the low-rank product of each layer that the file's layer means, in their order.

    Raises:
        UnreadableLora: the base model is not at hand, or its weights have other shapes.
    """
    if base_weight is None:
        raise UnreadableLora(f"{name} is a DoRA, whose change depends on the base model's own weights")
    weights = {path: base_weight(path).float() for path in parts}
    for path, part in parts.items():
        if weights[path].shape != (part.b.shape[0], part.a.shape[1]):
            own = [part.b.shape[0], part.a.shape[1]]
            raise UnreadableLora(f"{name} changes {own}, and the base model has {list(weights[path].shape)} there")
    changed = torch.cat([_changed(weights[path], part) for path, part in parts.items()])
    magnitude, (rows, columns) = magnitude.float(), changed.shape
    of_rows = magnitude.numel() == rows and tuple(magnitude.shape) != (1, columns)
    if not of_rows and magnitude.numel() != columns:
        raise UnreadableLora(f"{name}: {magnitude.numel()} magnitudes for {rows} rows")
    if not of_rows:
        gain = magnitude.view(1, -1) / changed.norm(dim=0, keepdim=True)
        return Dora(parts, weights, dict.fromkeys(parts, gain), of_rows)
    magnitude = magnitude.view(-1, 1)
    if target.swapped:
        magnitude = torch.cat(magnitude.chunk(2)[::-1])
    gains = (magnitude / changed.norm(dim=1, keepdim=True)).split([len(weights[path]) for path in parts])
    return Dora(parts, weights, dict(zip(parts, gains, strict=True)), of_rows)


def _changed(weight: torch.Tensor, part: LoraLayer) -> torch.Tensor:
    return torch.addmm(weight, part.b, part.a, alpha=part.scale)
