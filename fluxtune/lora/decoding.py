"""Tensors of a LoRA file in any known convention -> the layers of diffusers' transformer and text encoders.

One name of a file is one layer, or several that are fused in the checkpoint. A scale is ``alpha / rank`` where the file
has an alpha, 1 where it has none. LyCORIS' LoHa and LoKr are low-rank products too, and become plain ones exactly
(https://arxiv.org/abs/2108.06098, https://arxiv.org/abs/2309.14859); a large rank is then cut down.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from fluxtune.flux.layer_names import LayerNames, Layers
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.conventions import described, meaning_of
from fluxtune.lora.low_rank import compressed, factors_of

Tensors: TypeAlias = Mapping[str, torch.Tensor]
BaseWeight: TypeAlias = Callable[[str], torch.Tensor]
"""Path of a layer -> its weight ``[out, in]`` in the base model."""

LYCORIS_RANK = 128
"""What LoHa, LoKr and DoRA layers of a higher rank are cut down to."""
_EXACT = 1e-6


class UnreadableLora(ValueError):
    """A file's tensors do not make a LoRA; the message says why, without the file."""


@dataclass(frozen=True)
class Decoded:
    """What a file holds.

    Attributes:
        layers: by diffusers' path, with the part of the model in front.
        convention: whose names the file uses.
        errors: for layers that were cut down, the relative error of that.
        kinds: what the layers were, ``LoRA``, ``LoHa``, ``LoKr`` or ``DoRA`` -> how many.
    """

    layers: dict[str, LoraLayer]
    convention: str
    errors: dict[str, float] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)


def decoded(
    tensors: Tensors, names: LayerNames, metadata: Mapping[str, str], base_weight: BaseWeight | None = None
) -> Decoded:
    """Read the layers of a file.

    Args:
        metadata: the file's header: diffusers writes an adapter's alpha there.
        base_weight: the base model's weights, which DoRA is relative to.

    Raises:
        UnreadableLora: tensors that are no part of a LoRA of this family, are missing, or do not fit together.
    """
    by_layer, alphas = _grouped(tensors, names), _Alphas.of(metadata)
    layers: dict[str, LoraLayer] = {}
    errors: dict[str, float] = {}
    kinds: dict[str, int] = {}
    for name, (target, roles) in by_layer.items():
        kind, whole = _layer(name, roles, alphas, target)
        for path, part in zip(target.parts, _parts(name, whole, target, names), strict=True):
            if path in layers:
                raise UnreadableLora(f"the layer {path} is there twice")
            if "magnitude" in roles:
                kind, (part, errors[path]) = "DoRA", _dora(name, path, part, roles["magnitude"], target, base_weight)
            elif kind in ("LoHa", "LoKr"):
                part, errors[path] = compressed(part, LYCORIS_RANK, _EXACT)
            # What a fused layer holds for a part that was not trained is no layer.
            if len(target.parts) == 1 or bool(part.b.any()):
                layers[path] = part
        kinds[kind] = kinds.get(kind, 0) + 1
    if not layers:
        raise UnreadableLora("it holds no layers of a LoRA")
    return Decoded(layers, described(tensors), {path: error for path, error in errors.items() if error > _EXACT}, kinds)


def _grouped(tensors: Tensors, names: LayerNames) -> dict[str, tuple[Layers, dict[str, torch.Tensor]]]:
    """For each layer's name in the file: the layers it means, and its tensors by what they are."""
    found: dict[str, tuple[Layers, dict[str, torch.Tensor]]] = {}
    unknown = []
    for key, tensor in tensors.items():
        meaning = meaning_of(key, names)
        if meaning is None:
            unknown.append(key)
            continue
        name, target, role = meaning
        found.setdefault(name, (target, {}))[1][role] = tensor
    if unknown:
        shown = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise UnreadableLora(f"{len(unknown)} of {len(tensors)} tensors are no part of a LoRA of this family: {shown}")
    return found


def _layer(name: str, roles: dict[str, torch.Tensor], alphas: _Alphas, target: Layers) -> tuple[str, LoraLayer]:
    """What a layer of the file is, and its change as one low-rank product, in float32."""
    roles = {role: tensor.float() for role, tensor in roles.items()}
    alpha = float(roles.pop("alpha")) if "alpha" in roles else None
    present = set(roles) - {"magnitude"}
    if present == {"down", "up"}:
        a, b = _matrix(name, roles["down"]), _matrix(name, roles["up"])
        if a.shape[0] != b.shape[1]:
            raise UnreadableLora(f"{name}: A has {a.shape[0]} rows, and B has {b.shape[1]} columns")
        scale = alphas.scale(name, a.shape[0]) if alpha is None else alpha / a.shape[0]
        return "LoRA", LoraLayer(a, b, scale)
    if present == {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}:
        return "LoHa", _loha(name, roles, alpha)
    if {each.removesuffix("_a").removesuffix("_b") for each in present} == {"lokr_w1", "lokr_w2"}:
        return "LoKr", _lokr(name, roles, alpha)
    raise UnreadableLora(f"{name} has {', '.join(sorted(present)) or 'an alpha'} alone, which makes no layer")


def _loha(name: str, roles: dict[str, torch.Tensor], alpha: float | None) -> LoraLayer:
    """``(W1a W1b) * (W2a W2b)``, element by element: each pair of a column and a row of both is one of the product."""
    w1a, w1b, w2a, w2b = (_matrix(name, roles[f"hada_{each}"]) for each in ("w1_a", "w1_b", "w2_a", "w2_b"))
    if w1a.shape[0] != w2a.shape[0] or w1b.shape[1] != w2b.shape[1]:
        raise UnreadableLora(f"{name}: the two products of LoHa have different shapes")
    b = (w1a[:, :, None] * w2a[:, None, :]).flatten(1)
    a = (w1b[:, None, :] * w2b[None, :, :]).flatten(0, 1)
    return LoraLayer(a, b, 1.0 if alpha is None else alpha / w1b.shape[0])


def _lokr(name: str, roles: dict[str, torch.Tensor], alpha: float | None) -> LoraLayer:
    """``kron(W1, W2)``: the Kronecker product of low-rank products is that of their halves."""
    (b1, a1, rank1), (b2, a2, rank2) = (_kronecker_half(name, roles, each) for each in ("lokr_w1", "lokr_w2"))
    # Both given in full have no rank that an alpha could be relative to.
    rank = rank2 or rank1
    return LoraLayer(torch.kron(a1, a2), torch.kron(b1, b2), alpha / rank if alpha is not None and rank else 1.0)


def _kronecker_half(name: str, roles: dict[str, torch.Tensor], which: str) -> tuple[torch.Tensor, torch.Tensor, int]:
    """``(b, a, rank)`` of one factor; rank 0 where it is given in full."""
    if which in roles:
        whole = _matrix(name, roles[which])
        layer, _ = compressed(LoraLayer(torch.eye(whole.shape[1]), whole, 1.0), error=_EXACT / 10)
        return layer.b, layer.a, 0
    if {f"{which}_a", f"{which}_b"} - set(roles):
        raise UnreadableLora(f"{name}: half of {which} is missing")
    b, a = _matrix(name, roles[f"{which}_a"]), _matrix(name, roles[f"{which}_b"])
    return b, a, a.shape[0]


def _dora(
    name: str,
    path: str,
    part: LoraLayer,
    magnitude: torch.Tensor,
    target: Layers,
    base_weight: BaseWeight | None,
) -> tuple[LoraLayer, float]:
    """``m (W + BA) / |W + BA| - W``, the nearest low-rank product to it (https://arxiv.org/abs/2402.09353)."""
    if base_weight is None:
        raise UnreadableLora(f"{name} is a DoRA, whose change depends on the base model's own weights")
    weight = base_weight(path).float()
    changed = weight + part.scale * (part.b @ part.a)
    magnitude = magnitude.float().flatten()
    if magnitude.numel() == changed.shape[1] != changed.shape[0] and len(target.parts) == 1:
        directed = changed * (magnitude / changed.norm(dim=0))
    else:
        rows = magnitude.split(changed.shape[0])[target.parts.index(path)] if len(target.parts) > 1 else magnitude
        if rows.numel() != changed.shape[0]:
            raise UnreadableLora(f"{name}: {magnitude.numel()} magnitudes for {changed.shape[0]} rows")
        directed = changed * (rows / changed.norm(dim=1))[:, None]
    return factors_of(directed - weight, LYCORIS_RANK)


def _parts(name: str, whole: LoraLayer, target: Layers, names: LayerNames) -> list[LoraLayer]:
    """A layer of the file, shared out among the layers it means."""
    if target.swapped:
        whole = LoraLayer(whole.a, torch.cat(whole.b.chunk(2)[::-1]), whole.scale)
    if len(target.parts) == 1:
        return [whole]
    widths = [names.width(path) for path in target.parts]
    rows = whole.b.shape[0]
    if rows % sum(widths):
        raise UnreadableLora(f"{name} has {rows} rows, which are not {sum(widths)} parts")
    heights = [rows // sum(widths) * width for width in widths]
    small = _block_diagonal(whole, heights)
    if small is not None:
        return small
    return [LoraLayer(whole.a.clone(), b.contiguous(), whole.scale) for b in whole.b.split(heights)]


def _block_diagonal(whole: LoraLayer, heights: list[int]) -> list[LoraLayer] | None:
    """The layers that were stacked into one; None where they share their A.

    The columns of B that are not zero in a part's rows are its own, if no other part has them too.
    """
    used = [b.any(dim=0) for b in whole.b.split(heights)]
    if int(torch.stack(used).sum(dim=0).max()) > 1:
        return None
    columns = [each.nonzero().flatten() for each in used]
    return [
        LoraLayer(whole.a[own if len(own) else slice(0, 1)].contiguous(), _columns(b, own), whole.scale)
        for b, own in zip(whole.b.split(heights), columns, strict=True)
    ]


def _columns(b: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    return b[:, own].contiguous() if len(own) else b.new_zeros(b.shape[0], 1)


def _matrix(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A factor as a matrix; those of 1 x 1 convolutions are, too."""
    if tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
        tensor = tensor.flatten(1)
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise UnreadableLora(f"{name}: a tensor is {list(tensor.shape)}: wanted a matrix")
    return tensor


@dataclass(frozen=True)
class _Alphas:
    """The scale of layers whose alpha is no tensor: from the header that diffusers writes, else 1."""

    rank: float | None = None
    alpha: float | None = None
    rank_stabilized: bool = False
    patterns: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> _Alphas:
        try:
            settings: dict[str, Any] = json.loads(metadata.get("lora_adapter_metadata", "{}"))
            own = {key.removeprefix("transformer."): value for key, value in settings.items()}
            alpha = own.get("lora_alpha")
            patterns = {str(key): float(value) for key, value in (own.get("alpha_pattern") or {}).items()}
            stabilized = bool(own.get("use_rslora"))
            return cls(own.get("r"), None if alpha is None else float(alpha), stabilized, patterns)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UnreadableLora(f"the adapter's settings in its header are damaged: {error}") from error

    def scale(self, name: str, rank: int) -> float:
        """As peft computes it: a layer's own alpha, else the adapter's, else the rank; over the rank or its root."""
        own = next((value for key, value in self.patterns.items() if re.match(rf"(.*\.)?({key})$", name)), self.alpha)
        if own is None:
            return 1.0
        return own / (math.sqrt(rank) if self.rank_stabilized else rank)
