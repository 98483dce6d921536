"""What a LoRA file is: its format, ranks and alphas, how much it changes each part of the model, and its header."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import hypot, prod, sqrt
from pathlib import Path
from typing import Any

import torch

from fluxtune.files import sha256_of
from fluxtune.flux.base import Base
from fluxtune.flux.families import FLUX1, Family
from fluxtune.flux.stored import weight_reader
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.conventions import meaning_of
from fluxtune.lora.dora import BaseWeight
from fluxtune.lora.files import header_of
from fluxtune.lora.low_rank import norm_of, rank_of
from fluxtune.lora.reading import LoraFile, read_lora_file


@dataclass(frozen=True)
class Group:
    """Layers of one kind, such as the attention of the double blocks.

    Attributes:
        ranks, alphas: value -> how many layers have it; an alpha is the scale times the rank.
        norm: Frobenius norm of all their changes together; None where that needs the base model.
    """

    name: str
    layers: int
    ranks: Mapping[int, int]
    alphas: Mapping[str, int]
    norm: float | None


@dataclass(frozen=True)
class Inspection:
    """What a file is.

    Attributes:
        parameters: numbers that were trained, of which ``magnitudes`` are those of a DoRA.
        blocks: block, ``double 0`` to ``single 37`` or ``outside``, -> norm of its change, as of a group.
        hashes: ``sha256`` of the file, the ``autov2`` and ``autov3`` that sites show, and ``header``, by which user
            interfaces know a file whose header has one (`sshs_model_hash`).
    """

    file: str
    bytes: int
    format: str
    family: str
    kinds: Mapping[str, int]
    dtypes: Mapping[str, int]
    parameters: int
    magnitudes: int
    groups: list[Group]
    blocks: Mapping[str, float | None]
    trigger: str | None
    hashes: Mapping[str, str]
    metadata: Mapping[str, str]


def inspect(path: Path, family: Family = FLUX1, open_model: Callable[[], Base] | None = None) -> Inspection:
    """Read a LoRA file and describe it.

    Args:
        open_model: the base model that it was trained on, called for a DoRA alone: what that changes depends on the
            model's weights.

    Raises:
        UsageError, StorageError, BaseModelError: as ``read_lora_file``; or the base model cannot be had.
    """
    lora = read_lora_file(path, family, directions=True)
    norms = _norms(lora, family, open_model)
    stated = lora.metadata.get("sshs_model_hash")
    magnitudes = _magnitudes(path, family)
    by_group: dict[str, list[str]] = {}
    by_block: dict[str, list[str]] = {}
    for name in sorted(lora.layers, key=_place):
        by_group.setdefault(_group_of(name), []).append(name)
        by_block.setdefault(_block_of(name), []).append(name)
    return Inspection(
        file=str(path),
        bytes=path.stat().st_size,
        format=lora.convention,
        family=family.name,
        kinds=lora.kinds,
        dtypes=lora.dtypes,
        parameters=magnitudes + sum(layer.a.numel() + layer.b.numel() for layer in lora.layers.values()),
        magnitudes=magnitudes,
        groups=[_group(name, {each: lora.layers[each] for each in some}, norms) for name, some in by_group.items()],
        blocks={name: _together(norms, some) for name, some in by_block.items()},
        trigger=lora.metadata.get("modelspec.trigger_phrase"),
        hashes={**hashes_of(path), **({"header": stated} if stated else {})},
        metadata=dict(sorted(lora.metadata.items())),
    )


def hashes_of(path: Path) -> dict[str, str]:
    """The hashes by which sites and UIs know a file.

    ``autov2``: the first ten digits of the file's SHA-256. ``autov3``: the first twelve of the SHA-256 of the tensors'
    bytes alone, over which `sshs_model_hash` is, too (kohya's sd-scripts, `train_util.py`); another header does not
    change it.
    """
    whole = sha256_of(path)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while block := file.read(1 << 20):
            digest.update(block)
    return {"sha256": whole, "autov2": whole[:10].upper(), "autov3": digest.hexdigest()[:12].upper()}


def as_data(inspection: Inspection) -> dict[str, Any]:
    """The description as programs read it."""
    data = {**vars(inspection), "groups": [vars(group) for group in inspection.groups]}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in data.items()}


def _magnitudes(path: Path, family: Family) -> int:
    """How many magnitudes a file holds, by its header."""
    meant = ((entry, meaning_of(key, family.layer_names)) for key, entry in header_of(path).tensors.items())
    return sum(prod(entry.shape) for entry, meaning in meant if meaning is not None and meaning[2] == "magnitude")


def _norms(lora: LoraFile, family: Family, open_model: Callable[[], Base] | None) -> dict[str, float] | None:
    """Path of a layer -> norm of its change; None of a DoRA without its base model."""
    weight: BaseWeight | None = None
    if "DoRA" in lora.kinds:
        if open_model is None:
            return None
        weight = weight_reader(open_model())
        lora = read_lora_file(lora.path, family, weight, grows=True)
    norms = {}
    for path, layer in lora.layers.items():
        if layer.growth is not None and weight is not None:
            grown = layer.growth[:, None] * weight(path).float()
            norm = float(torch.addmm(grown, layer.b, layer.a, alpha=layer.scale).norm())
        else:
            norm = norm_of(layer)
        # What a layer lost when it was cut down is orthogonal to what is left of it.
        norms[path] = norm / sqrt(1 - lora.errors.get(path, 0.0) ** 2)
    return norms


def _group(name: str, layers: Mapping[str, LoraLayer], norms: Mapping[str, float] | None) -> Group:
    ranks = Counter(map(rank_of, layers.values()))
    alphas = Counter(f"{layer.scale * rank_of(layer):g}" for layer in layers.values())
    norm = _together(norms, layers)
    return Group(name, len(layers), dict(sorted(ranks.items())), dict(sorted(alphas.items())), norm)


def _together(norms: Mapping[str, float] | None, paths: Iterable[str]) -> float | None:
    return None if norms is None else hypot(*(norms.get(path, 0.0) for path in paths))


def _place(path: str) -> tuple[object, ...]:
    """Order in which a picture goes through the model: double blocks, single blocks, then all else."""
    block = re.match(r"transformer\.(single_)?transformer_blocks\.(\d+)\.", path)
    return (0, bool(block[1]), int(block[2]), path) if block else (1, not path.startswith("transformer."), 0, path)


def _block_of(path: str) -> str:
    part, _, layer = path.partition(".")
    block = re.match(r"(single_)?transformer_blocks\.(\d+)\.", layer)
    if block:
        return f"{'single' if block[1] else 'double'} {block[2]}"
    return "outside" if part == "transformer" else part


def _group_of(path: str) -> str:
    block = _block_of(path)
    kind = block.partition(" ")[0]
    if kind not in ("double", "single"):
        return block
    layer = path.partition("blocks.")[2].partition(".")[2]
    if "norm" in layer:
        return f"{kind} modulation"
    if layer.startswith("attn."):
        return f"{kind} attention" + (" of text" if "add" in layer else "")
    return f"{kind} MLP" + (" of text" if "context" in layer else "")
