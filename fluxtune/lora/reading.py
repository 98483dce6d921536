"""LoRA files of any trainer: opened, recognised, and read into layers, or refused with one reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from fluxtune.errors import BaseModelError
from fluxtune.flux.families import FLUX1, Family
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.decoding import BaseWeight, UnreadableLora, decoded
from fluxtune.lora.files import read_metadata

_HINTS = {
    "is a DoRA": "name the model that it was trained on with --base",
    "no part of a LoRA": "choose a LoRA that was trained on FLUX.1",
}


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file that was read.

    Attributes:
        metadata: of its header.
        layers: by diffusers' path with the part of the model in front, such as
            ``transformer.transformer_blocks.0.attn.to_q``.
        convention: whose names it uses.
        dtypes: of its tensors -> how many.
        kinds, errors: see ``Decoded``.
    """

    path: Path
    metadata: Mapping[str, str]
    layers: Mapping[str, LoraLayer]
    convention: str
    dtypes: Mapping[str, int]
    kinds: Mapping[str, int]
    errors: Mapping[str, float]


def read_lora_file(path: Path, family: Family = FLUX1, base_weight: BaseWeight | None = None) -> LoraFile:
    """Read a LoRA in any convention that is known (``conventions.py``).

    Args:
        base_weight: the base model's weights, which DoRA needs.

    Raises:
        UsageError: there is no such file, or it is no safetensors.
        StorageError: the file is damaged.
        BaseModelError: it holds no LoRA for the family, or more than one, or numbers that are not finite.
    """
    metadata = read_metadata(path)
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (safe_open is no mapping)
    try:
        broken = [key for key, tensor in tensors.items() if not _finite(tensor)]
        if broken:
            raise UnreadableLora(f"{len(broken)} of its tensors are not finite, the first is {broken[0]}")
        found = decoded(tensors, family.layer_names, metadata, base_weight)
    except UnreadableLora as error:
        hint = next((hint for mark, hint in _HINTS.items() if mark in str(error)), "take another LoRA file")
        raise BaseModelError(f"this LoRA cannot be read: {error}", where=str(path), hint=hint) from error
    dtypes: dict[str, int] = {}
    for tensor in tensors.values():
        name = str(tensor.dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + 1
    return LoraFile(path, metadata, found.layers, found.convention, dtypes, found.kinds, found.errors)


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.float()).all())
