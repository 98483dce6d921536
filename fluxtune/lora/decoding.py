"""Tensors of a LoRA file in any known convention -> the layers of diffusers' transformer and text encoders.

One name of a file is one layer, or several that are fused in the checkpoint. A scale is ``alpha / rank`` where the file
has an alpha, 1 where it has none. LyCORIS' LoHa and LoKr are low-rank products too, and become plain ones exactly
(https://arxiv.org/abs/2108.06098, https://arxiv.org/abs/2309.14859); a large rank is then cut down. A DoRA grows the
rows of the base's own weight as well, which no low-rank product does: it is read as both, or as the nearest product.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch

from fluxtune.errors import some_names
from fluxtune.flux.layer_names import LayerNames, Layers
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.conventions import described, meaning_of, stranger
from fluxtune.lora.dora import BaseWeight, dora
from fluxtune.lora.low_rank import compressed, norm_of
from fluxtune.lora.lycoris import LOHA, LOKR, loha, lokr
from fluxtune.lora.matrices import UnreadableLora, above_zero, matrix, number

Tensors: TypeAlias = Mapping[str, torch.Tensor]

LYCORIS_RANK = 128
"""What LoHa, LoKr and DoRA layers of a higher rank are cut down to."""
_EXACT = 1e-6
_SHOWN = {"down": "A (down)", "up": "B (up)"}


@dataclass(frozen=True)
class Decoded:
    """What a file holds.

    Attributes:
        layers: by diffusers' path, with the part of the model in front.
        convention: whose names the file uses.
        errors: for layers that were cut down, the relative error of that.
        kinds: what the layers were, ``LoRA``, ``LoHa``, ``LoKr`` or ``DoRA`` -> how many.
    """

    layers: dict[str, LoraLayer] = field(default_factory=dict)
    convention: str = "unknown"
    errors: dict[str, float] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)


def decoded(
    tensors: Tensors,
    names: LayerNames,
    metadata: Mapping[str, str],
    base_weight: BaseWeight | None = None,
    grows: bool = False,
    directions: bool = False,
) -> Decoded:
    """Read the layers of a file.

    Args:
        metadata: the file's header: diffusers writes an adapter's alpha there.
        base_weight: the base model's weights, which DoRA is relative to.
        grows: whether the caller heeds ``LoraLayer.growth``; without, a DoRA becomes a product alone.
        directions: of a DoRA only the product that turns its direction, without magnitudes: not what it changes.

    Raises:
        UnreadableLora: tensors that are no part of a LoRA of this family, are missing, or do not fit together.
    """
    by_layer, alphas = _grouped(tensors, names), _Alphas.of(metadata)
    found = Decoded(convention=described(tensors))
    for name, (target, roles) in by_layer.items():
        kind, whole, lost = _layer(name, roles, alphas, target)
        parts = dict(zip(target.parts, _parts(name, whole, target, names), strict=True))
        if twice := [path for path in parts if path in found.layers]:
            raise UnreadableLora(f"the layer {twice[0]} is there twice")
        is_dora = "magnitude" in roles
        if is_dora and not directions:
            if bool(lost.any()):
                raise UnreadableLora(f"{name} is a DoRA of a {kind} of a rank above {LYCORIS_RANK}")
            directed = dora(name, parts, roles["magnitude"], target, base_weight)
            read = directed.exact() if grows and directed.of_rows else directed.nearest(LYCORIS_RANK)
        elif kind != "LoRA":
            shares = lost.split([len(part.b) for part in parts.values()])
            read = {path: _cut(part, float(own.sum())) for (path, part), own in zip(parts.items(), shares, strict=True)}
        else:
            read = {path: (part, 0.0) for path, part in parts.items()}
        for path, (layer, error) in read.items():
            # What a fused layer holds for a part that was not trained is no layer.
            if len(parts) == 1 or layer.growth is not None or (is_dora and directions) or bool(layer.b.any()):
                found.layers[path], found.errors[path] = layer, error
        kind = "DoRA" if is_dora else kind
        found.kinds[kind] = found.kinds.get(kind, 0) + 1
    if not found.layers:
        raise UnreadableLora("it holds no layers of a LoRA")
    return replace(found, errors={path: error for path, error in found.errors.items() if error > _EXACT})


def _grouped(tensors: Tensors, names: LayerNames) -> dict[str, tuple[Layers, dict[str, torch.Tensor]]]:
    """For each layer's name in the file: the layers it means, and its tensors by what they are."""
    found: dict[str, tuple[Layers, dict[str, torch.Tensor]]] = {}
    unknown = []
    for key, tensor in tensors.items():
        meaning = meaning_of(key, names)
        if meaning is None:
            if not _without_effect(key, tensor):
                unknown.append(key)
            continue
        name, target, role = meaning
        roles = found.setdefault(name, (target, {}))[1]
        if role in roles:
            raise UnreadableLora(f"{name} is there in two spellings, the second is {key}")
        roles[role] = tensor
    if unknown:
        other = stranger(unknown)
        raise UnreadableLora(
            f"{len(unknown)} of {len(tensors)} tensors are no part of a LoRA of this family"
            f"{f', they are named as in {other}' if other else ''}: {some_names(unknown)}"
        )
    return found


def _without_effect(key: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor that is no part of a LoRA does nothing: some programs write differences of norms and biases that
    were not trained. FLUX.1 does not use CLIP's projection."""
    is_difference = key.endswith((".diff", ".diff_b", ".lora_B.bias"))
    return "text_projection" in key or (is_difference and not bool(tensor.float().any()))


def _layer(
    name: str, roles: Mapping[str, torch.Tensor], alphas: _Alphas, target: Layers
) -> tuple[str, LoraLayer, torch.Tensor]:
    """What a layer of the file is, its change as one low-rank product, and of each row the square of what that lost."""
    alpha = number(name, roles["alpha"]) if "alpha" in roles else None
    present = set(roles) - {"magnitude", "alpha"}
    if present == {"down", "up"}:
        a, b = matrix(name, roles["down"]), matrix(name, roles["up"])
        if a.shape[0] != b.shape[1]:
            raise UnreadableLora(f"{name}: A has {a.shape[0]} rows, and B has {b.shape[1]} columns")
        rank = a.shape[0]
        scale = alphas.scale(target.parts[0], rank) if alpha is None else alpha / rank
        return "LoRA", LoraLayer(a, b, scale), torch.zeros(len(b))
    if present == LOHA:
        layer = loha(name, roles, alpha)
        return "LoHa", layer, torch.zeros(len(layer.b))
    if {each.removesuffix("_a").removesuffix("_b") for each in present} == LOKR:
        return "LoKr", *lokr(name, roles, alpha, LYCORIS_RANK * len(target.parts))
    there = ", ".join(_SHOWN.get(each, each) for each in sorted(present)) or "an alpha"
    raise UnreadableLora(f"{name} has {there} alone, which makes no layer")


def _cut(part: LoraLayer, lost: float) -> tuple[LoraLayer, float]:
    """A layer of LyCORIS cut down to ``LYCORIS_RANK``, and its relative error.

    Args:
        lost: square of what was cut off before, which is orthogonal to what is cut off here.
    """
    layer, error = compressed(part, LYCORIS_RANK, _EXACT)
    squared = norm_of(part) ** 2
    return layer, math.sqrt((lost + error**2 * squared) / ((squared + lost) or 1.0))


def _parts(name: str, whole: LoraLayer, target: Layers, names: LayerNames) -> list[LoraLayer]:
    """A layer of the file, shared out among the layers it means."""
    if target.swapped:
        whole = LoraLayer(whole.a, torch.cat(whole.b.chunk(2)[::-1]), whole.scale)
    if len(target.parts) == 1:
        return [whole]
    widths = [names.width(path) for path in target.parts]
    rows, hidden = whole.b.shape[0], whole.a.shape[1]
    if rows != sum(widths) * hidden:
        raise UnreadableLora(
            f"{name} has {rows} rows for an input of {hidden}: of this family it has {sum(widths)} times as many"
        )
    heights = [hidden * width for width in widths]
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


@dataclass(frozen=True)
class _Alphas:
    """The scale of layers whose alpha is no tensor: from the header that diffusers writes, else 1.

    Attributes:
        settings: part of the model -> the settings of its adapter, as peft has them.
    """

    settings: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> _Alphas:
        try:
            stated = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        except (ValueError, RecursionError) as error:
            raise UnreadableLora(f"the adapter's settings in its header are damaged: {error}") from error
        if not isinstance(stated, dict):
            raise UnreadableLora("the adapter's settings in its header are no table")
        settings: dict[str, dict[str, Any]] = {}
        for key, value in stated.items():
            part, _, name = key.partition(".")
            settings.setdefault(part, {})[name] = value
        for part, own in settings.items():
            patterns = own.get("alpha_pattern") or {}
            if not isinstance(patterns, dict):
                raise UnreadableLora(f"in its header {part}.alpha_pattern is no table")
            for name in ("lora_alpha", "r"):
                if name in own:
                    above_zero(f"{part}.{name}", own[name])
            for name, value in patterns.items():
                above_zero(f"{part}.alpha_pattern of {name}", value)
                if _REGULAR.search(name.removeprefix("^")):
                    raise UnreadableLora(f"in its header {part}.alpha_pattern has {name!r}: wanted the name of a layer")
        return cls(settings)

    def scale(self, path: str, rank: int) -> float:
        """As peft computes it: a layer's own alpha, else the adapter's, else the rank; over the rank or its root."""
        part, _, layer = path.partition(".")
        own = self.settings.get(part, {})
        patterns = own.get("alpha_pattern") or {}
        fitting = (value for name, value in patterns.items() if f".{layer}".endswith(f".{name.removeprefix('^')}"))
        alpha = next(fitting, own.get("lora_alpha"))
        if alpha is None:
            return 1.0
        return float(alpha) / (math.sqrt(rank) if own.get("use_rslora") else rank)


_REGULAR = re.compile(r"[^\w.]")
"""What is in no layer's name: peft takes patterns for regular expressions, and those of a file are not run."""
