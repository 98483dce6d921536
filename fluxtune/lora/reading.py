"""LoRA files of any trainer: opened, recognised, and read into layers, or refused with one reason."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from fluxtune.errors import BaseModelError, some_names
from fluxtune.events import Sink, Warning, ignore
from fluxtune.flux.families import FLUX1, Family
from fluxtune.flux.weights import is_finite
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.decoding import decoded
from fluxtune.lora.dora import BaseWeight
from fluxtune.lora.files import read_metadata
from fluxtune.lora.matrices import WEIGHTS, UnreadableLora
from fluxtune.runs import lora_in

_HINTS = {
    "is a DoRA": "make a plain LoRA of it: fluxtune export FILE --base MODEL, the model that it was trained on",
    "no part of a LoRA": "choose a LoRA that was trained on FLUX.1",
}


_TRAINED = "transformer."


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


def read_lora_file(
    path: Path,
    family: Family = FLUX1,
    base_weight: BaseWeight | None = None,
    grows: bool = False,
    directions: bool = False,
) -> LoraFile:
    """Read a LoRA in any convention that is known (``conventions.py``).

    Args:
        base_weight: the base model's weights, which DoRA needs.
        grows: whether the caller heeds ``LoraLayer.growth``, which makes DoRA exact.
        directions: read a DoRA without its magnitudes, which needs no base model: not what it changes.

    Raises:
        UsageError: there is no such file, or it is no safetensors.
        StorageError: the file is damaged.
        BaseModelError: it holds no LoRA for the family, or more than one, or numbers that are not finite.
    """
    metadata = read_metadata(path)
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (safe_open is no mapping)
    try:
        broken = [key for key, tensor in tensors.items() if tensor.dtype in WEIGHTS and not is_finite(tensor)]
        if broken:
            raise UnreadableLora(f"these tensors of it have values that are no finite numbers: {some_names(broken)}")
        found = decoded(tensors, family.layer_names, metadata, base_weight, grows, directions)
    except UnreadableLora as error:
        hint = next((hint for mark, hint in _HINTS.items() if mark in str(error)), "take another LoRA file")
        raise BaseModelError(f"this LoRA cannot be read: {error}", where=str(path), hint=hint) from error
    dtypes: dict[str, int] = {}
    for tensor in tensors.values():
        name = str(tensor.dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + 1
    return LoraFile(path, metadata, found.layers, found.convention, dtypes, found.kinds, found.errors)


def read_start(path: Path, family: Family = FLUX1, on_event: Sink = ignore) -> dict[str, LoraLayer]:
    """The layers of a LoRA that a training starts from, by the transformer's own paths.

    Args:
        path: a file, or the folder of a run or a checkpoint.

    Raises:
        UsageError, StorageError, BaseModelError: as ``lora_in`` and ``read_lora_file``; or it changes text
            encoders too.
    """
    lora = read_lora_file(lora_in(path), family)
    require_family(lora.path, lora.metadata, family)
    if others := [name for name in lora.layers if not name.startswith(_TRAINED)]:
        raise BaseModelError(
            f"{len(others)} layers of this LoRA are of text encoders, which are not trained: {some_names(others)}",
            where=str(lora.path),
            hint="choose a LoRA of the transformer alone",
        )
    told_of_reading(lora, on_event)
    return {name.removeprefix(_TRAINED): layer for name, layer in lora.layers.items()}


def require_family(path: Path, metadata: Mapping[str, str], family: Family) -> None:
    """Refuse a LoRA whose header names another family of models.

    Raises:
        BaseModelError: it does.
    """
    known = re.compile(rf"{family.name}|{family.name.rstrip('0123456789')}(?![0-9])")
    for key in ("modelspec.architecture", "ss_base_model_version"):
        plain = re.sub(r"[^a-z0-9]", "", metadata.get(key, "").lower())
        if plain and not known.match(plain):
            raise BaseModelError(
                f"this LoRA is for {metadata[key]:.80}, and not for the family {family.name}",
                where=str(path),
                hint="choose a LoRA of this family, or its own base model with --base",
            )


def told_of_reading(lora: LoraFile, on_event: Sink) -> None:
    """Say what was not read exactly, and of a LoRA that does nothing that it does."""
    if not any(map(_acts, lora.layers.values())):
        on_event(Warning("this LoRA changes nothing: every layer's change is zero", where=str(lora.path)))
    if lora.errors:
        worst = max(lora.errors.values())
        kinds = " and ".join(kind for kind in lora.kinds if kind != "LoRA")
        on_event(
            Warning(
                f"{len(lora.errors)} {kinds} layers became low-rank products, which loses up to {worst:.1%} of a "
                "layer's change",
                where=str(lora.path),
            )
        )


def _acts(layer: LoraLayer) -> bool:
    grows = layer.growth is not None and bool(layer.growth.any())
    return layer.scale != 0 and (grows or (bool(layer.a.any()) and bool(layer.b.any())))
