"""A LoRA file beside the base model that it is to act on: taken whole or not at all.

A LoRA that acts in part makes pictures that mislead: every tensor of the file is read, and every layer fits the base.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fluxtune.errors import BaseModelError, some_names
from fluxtune.events import Sink, ignore
from fluxtune.files import sha256_of
from fluxtune.flux.base import Base, empty_part
from fluxtune.flux.families import Family
from fluxtune.flux.stored import weight_reader
from fluxtune.flux.weights import shapes_of
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.files import read_metadata
from fluxtune.lora.reading import LoraFile, read_lora_file, require_family, told_of_reading
from fluxtune.lora.use import LoraUse
from fluxtune.nano import EMBEDDED

_ROUND_CLIP = "text_model."
"""What CLIP's encoder is in, in files; not in the modules of transformers 5."""


@dataclass(frozen=True)
class Lora:
    """An opened LoRA file.

    Attributes:
        scale, groups: how strongly it acts: see ``LoraUse``.
        metadata: the file's header.
        layers: as they are in the file, by diffusers' path with the part of the model in front.
    """

    path: Path
    scale: float
    groups: tuple[tuple[str, float], ...]
    name: str
    sha256: str
    metadata: Mapping[str, str]
    layers: Mapping[str, LoraLayer]
    family: Family

    @property
    def changes_text(self) -> bool:
        """Whether it adapts a text encoder too."""
        return any(not path.startswith("transformer.") for path in self.layers)

    def acting(self) -> dict[str, LoraLayer]:
        """The layers as they act, each at its scale."""
        return LoraUse(self.path, self.scale, self.groups).acting(self.layers, self.family.lora_groups)


def open_lora(use: LoraUse, base: Base, on_event: Sink = ignore) -> Lora:
    """Read a LoRA file and check that every tensor of it will act on ``base``; of that only what DoRA needs is read.

    Raises:
        UsageError: there is no such file, or it is a pickle.
        StorageError: the file is damaged.
        BaseModelError: it is no FLUX LoRA, or is made for another model.
    """
    require_family(use.path, read_metadata(use.path), base.family)
    reader = cache(lambda: weight_reader(base))
    file = read_lora_file(use.path, base.family, lambda path: reader()(path), grows=True)
    require_fit(file, base)
    told_of_reading(file, on_event)
    return Lora(
        path=use.path,
        scale=use.scale,
        groups=use.groups,
        name=file.metadata.get("ss_output_name") or use.path.stem,
        sha256=sha256_of(use.path),
        metadata=file.metadata,
        layers=file.layers,
        family=base.family,
    )


def base_of(path: Path) -> str | None:
    """The base model that a LoRA file names, if that is ``nano`` or a hub id.

    Raises:
        UsageError: there is no such file, or it is a pickle.
    """
    named = read_metadata(path).get("ss_sd_model_name", "")
    return named if named == EMBEDDED or re.fullmatch(r"[\w.-]+/[\w.-]+", named) else None


def require_fit(lora: LoraFile, base: Base) -> None:
    """Check that the base model has every layer that a LoRA changes; no weights are loaded.

    Raises:
        BaseModelError: it lacks layers, or has them in other shapes.
    """
    wrong = []
    for part in dict.fromkeys(path.partition(".")[0] for path in lora.layers):
        shapes = shapes_of(empty_part(base, part))
        for path, layer in lora.layers.items():
            if not path.startswith(f"{part}."):
                continue
            own, shape = [layer.b.shape[0], layer.a.shape[1]], shapes.get(f"{place_in(shapes, path)}.weight")
            if shape is None:
                wrong.append(f"there is no layer {path.removeprefix('transformer.')}")
            elif list(shape) != own:
                wrong.append(f"{path.removeprefix('transformer.')} is {own}, and the model's {list(shape)}")
    if wrong:
        trained_on = lora.metadata.get("ss_sd_model_name")
        said = f", trained on {trained_on}," if trained_on else ""
        raise BaseModelError(
            f"this LoRA{said} does not fit {base.name}: {some_names(wrong)}",
            where=str(lora.path),
            hint=f"use its own base model: --base {trained_on or 'ID'}",
        )


def place_in(tensors: Collection[str], path: str) -> str:
    """The path of a layer within the module of its part of the model.

    Args:
        tensors: names of the module's tensors.
        path: with the part of the model in front.
    """
    layer = path.partition(".")[2]
    bare = layer.removeprefix(_ROUND_CLIP)
    return bare if f"{bare}.weight" in tensors else layer


def require_published(lora: LoraFile, family: Family) -> None:
    """Refuse a LoRA that names more blocks than the published models have; for where the base model is not at hand.

    Raises:
        BaseModelError: it does: it is for models of another family, or for one that was made deeper.
    """
    for blocks, depth in zip(family.blocks, family.published_depths, strict=True):
        found = (re.match(rf"transformer\.{blocks}\.(\d+)\.", layer) for layer in lora.layers)
        last = max((int(match[1]) for match in found if match), default=0)
        if last >= depth:
            raise BaseModelError(
                f"this LoRA changes block {last} of {blocks}, and the published models of {family.name} have {depth}",
                where=str(lora.path),
                hint="it seems to be for another family; of a model that was made deeper, name that with --base",
            )
