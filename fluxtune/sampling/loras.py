"""LoRA files for sampling, taken whole or not at all.

diffusers' own loader converts the formats of other trainers; what it would drop with no more than a log line is an
error here, because a LoRA that acts in part makes pictures that mislead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from torch import nn

from fluxtune.errors import BaseModelError, some_names
from fluxtune.files import sha256_of
from fluxtune.flux.base import Base
from fluxtune.lora.files import converted, header_of, read_metadata
from fluxtune.nano import EMBEDDED
from fluxtune.sampling.request import LoraUse

_TRANSFORMER = "transformer."
_TEXT = "text_encoder."
# What diffusers leaves out while it converts: encoders it has no LoRA for, and what is not low-rank.
_DROPPED = re.compile(r"dora_scale|lora_magnitude_vector|\.diff(_b)?$|^lora_te[23]_|t5xxl|text_projection")
_PAIR = re.compile(r"(?P<path>.+)\.(?P<half>lora_A|lora_B|lora\.down|lora\.up)\.weight")


@dataclass(frozen=True)
class Lora:
    """An opened LoRA file.

    Attributes:
        tensors: under diffusers' names: ``transformer.PATH.lora_A.weight [rank, in]`` and so on.
        alphas, adapter: what the file says of its scale, as diffusers' loader takes it.
        metadata: the file's header.
    """

    path: Path
    scale: float
    name: str
    sha256: str
    metadata: dict[str, str]
    tensors: dict[str, torch.Tensor]
    alphas: dict[str, Any] | None
    adapter: dict[str, Any] | None

    @property
    def changes_text(self) -> bool:
        """Whether it adapts the CLIP text encoder too."""
        return any(key.startswith(_TEXT) for key in self.tensors)


def open_lora(use: LoraUse, base: Base) -> Lora:
    """Read a LoRA file and check that every tensor of it will act on ``base``; loads no model.

    Raises:
        UsageError: there is no such file, or it is a pickle.
        StorageError: the file is damaged.
        BaseModelError: it is no FLUX LoRA, is made for another model, or holds tensors that would be ignored.
    """
    metadata = read_metadata(use.path)
    _refuse_other_family(use.path, metadata, base)
    tensors, alphas, adapter = converted(use.path, base.family)
    _refuse_lost_tensors(use.path, tensors)
    _refuse_other_shapes(use.path, tensors, base, metadata)
    name = metadata.get("ss_output_name") or use.path.stem
    return Lora(use.path, use.scale, name, sha256_of(use.path), metadata, tensors, alphas, adapter)


def base_of(path: Path) -> str | None:
    """The base model that a LoRA file names, if that is ``nano`` or a hub id.

    Raises:
        UsageError: there is no such file, or it is a pickle.
    """
    named = read_metadata(path).get("ss_sd_model_name", "")
    return named if named == EMBEDDED or re.fullmatch(r"[\w.-]+/[\w.-]+", named) else None


def acting(loras: Mapping[Path, Lora], uses: Sequence[LoraUse]) -> list[Lora]:
    """Opened LoRAs as they are used together."""
    return [replace(loras[use.path], scale=use.scale) for use in uses]


def apply_to_transformer(pipeline: Any, loras: Sequence[Lora]) -> None:
    """Make exactly these LoRAs act on the pipeline's transformer, each at its scale, as ``load_lora_weights`` does.

    It can be called again with others, or with other scales.

    Raises:
        BaseModelError: the settings in a file's header are none of an adapter.
    """
    pipeline.unload_lora_weights()
    names = [_adapter_name(number) for number in range(len(loras))]
    for name, lora in zip(names, loras, strict=True):
        with _told_as_settings(lora):
            pipeline.load_lora_into_transformer(
                {key: tensor for key, tensor in lora.tensors.items() if key.startswith(_TRANSFORMER)},
                network_alphas=lora.alphas,
                transformer=pipeline.transformer,
                adapter_name=name,
                metadata=lora.adapter,
                low_cpu_mem_usage=True,
            )
    if names:
        pipeline.transformer.set_adapters(names, [lora.scale for lora in loras])


def apply_to_text_encoder(pipeline: Any, loras: Sequence[Lora]) -> None:
    """Make exactly what these LoRAs hold for the CLIP text encoder act on it, each at its scale.

    Raises:
        BaseModelError: the encoder lacks a layer that a LoRA changes.
    """
    from diffusers.loaders.lora_base import set_adapters_for_text_encoder

    pipeline.unload_lora_weights()
    chosen = [lora for lora in loras if lora.changes_text]
    names = [_adapter_name(number) for number in range(len(chosen))]
    for name, lora in zip(names, chosen, strict=True):
        tensors = {key: tensor for key, tensor in lora.tensors.items() if key.startswith(_TEXT)}
        with _told_as_settings(lora):
            pipeline.load_lora_into_text_encoder(
                tensors,
                network_alphas=lora.alphas,
                text_encoder=pipeline.text_encoder,
                prefix=_TEXT.removesuffix("."),
                adapter_name=name,
                metadata=lora.adapter,
            )
        parameters = [path for path, _ in pipeline.text_encoder.named_parameters() if f".{name}." in path]
        if len(parameters) != len(tensors):
            raise BaseModelError(
                f"only {len(parameters)} of this LoRA's {len(tensors)} tensors for the text encoder fit it",
                where=str(lora.path),
                hint="choose a LoRA that was trained on this base model",
            )
    if names:
        set_adapters_for_text_encoder(names, pipeline.text_encoder, [lora.scale for lora in chosen])


@contextmanager
def _told_as_settings(lora: Lora) -> Iterator[None]:
    """Its tensors were looked at before; what diffusers and peft still refuse are the settings beside them."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise BaseModelError(
            f"the settings in its header are none of a LoRA ({type(error).__name__}: {error})",
            where=str(lora.path),
            hint="export it again, from the trainer that made it",
        ) from error


def _adapter_name(number: int) -> str:
    return f"lora{number}"


def _refuse_other_family(path: Path, metadata: dict[str, str], base: Base) -> None:
    for key in ("modelspec.architecture", "ss_base_model_version"):
        plain = re.sub(r"[^a-z0-9]", "", metadata.get(key, "").lower())
        if plain and not plain.startswith(base.family.name) and plain != "flux":
            raise BaseModelError(
                f"this LoRA is for {metadata[key]}, and {base.name} is of the family {base.family.name}",
                where=str(path),
                hint="choose a LoRA of this family, or its own base model with --base",
            )


def _refuse_lost_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Tensors that the conversion dropped, or left under names that the loader passes over."""
    lost = [key for key in header_of(path).tensors if _DROPPED.search(key)]
    lost += [key for key in tensors if not key.startswith((_TRANSFORMER, _TEXT)) or not _PAIR.fullmatch(key)]
    if lost:
        raise BaseModelError(
            f"{len(lost)} tensors of this LoRA would be ignored, and its pictures would mislead: {some_names(lost)}",
            where=str(path),
            hint="export it again in the diffusers (PEFT) layout, from the trainer that made it",
        )
    if not any(key.startswith(_TRANSFORMER) for key in tensors):
        raise BaseModelError(
            "this file holds no LoRA for a FLUX transformer", where=str(path), hint="choose a FLUX LoRA"
        )


def _refuse_other_shapes(path: Path, tensors: dict[str, torch.Tensor], base: Base, metadata: dict[str, str]) -> None:
    transformer_class = getattr(diffusers, base.family.transformer)
    with init_empty_weights():
        transformer = transformer_class.from_config(transformer_class.load_config(base.folder / "transformer"))
    wrong = []
    for key, tensor in tensors.items():
        pair = _PAIR.fullmatch(key.removeprefix(_TRANSFORMER))
        if pair is None or not key.startswith(_TRANSFORMER):
            continue
        into = pair["half"] in ("lora_A", "lora.down")
        wanted = _width(transformer, pair["path"], into)
        if wanted is None:
            wrong.append(f"there is no layer {pair['path']}")
        elif tensor.shape[1 if into else 0] != wanted:
            wrong.append(f"{key} is {list(tensor.shape)}, and the layer's {'input' if into else 'output'} {wanted}")
    if wrong:
        trained_on = metadata.get("ss_sd_model_name")
        said = f", trained on {trained_on}," if trained_on else ""
        raise BaseModelError(
            f"this LoRA{said} does not fit {base.name}: {some_names(wrong)}",
            where=str(path),
            hint=f"use its own base model: --base {trained_on or 'ID'}",
        )


def _width(transformer: nn.Module, path: str, into: bool) -> int | None:
    """How wide a linear layer's input or output is; None where there is no such layer."""
    try:
        layer = transformer.get_submodule(path)
    except AttributeError:
        return None
    if not isinstance(layer, nn.Linear):
        return None
    return layer.in_features if into else layer.out_features
