"""The single files that people have for ComfyUI: each part of a model, or several, in one safetensors file.

Names and fused layers become diffusers' one tensor at a time, by views of what is mapped into memory. fp8 weights come
plain, or scaled (the layer's ``scale_weight`` or ``weight_scale`` multiplies them: ComfyUI, `comfy/ops.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fluxtune.errors import BaseModelError, some_names
from fluxtune.flux.weights import Scaled, Weight, header_of, opened, wrong_weights

_SCALES = ("scale_weight", "weight_scale")
# Scales of activations, and marks of how ComfyUI multiplies.
_UNREAD = ("scale_input", "input_scale", "scaled_fp8", "comfy_quant", *_SCALES)
_OTHER_MODELS = {
    r"\.lora_|lora_unet_|\.hada_|\.lokr_|\.lora\.": "a LoRA",
    r"double_stream_modulation": "a model of FLUX.2",
    r"\binput_blocks\.": "a model of Stable Diffusion (1.5, 2 or XL)",
    r"\bjoint_blocks\.": "a model of Stable Diffusion 3",
}


@dataclass(frozen=True)
class Names:
    """How files name the tensors of one part of a model.

    Attributes:
        noun: what the part is called in messages.
        prefixes: what may stand before all names, where several models are in one file.
        marks: tensors that tell the part, after the prefix; each file has one of them.
        layers: layer -> layers of diffusers, among which its rows are shared out in this order; others have their name.
        swapped: layers of diffusers whose halves stand in the other order (shift, scale).
        counted_back: blocks of diffusers that are counted from the other end.
        passed_over: tensors that nothing needs.
        hints: part of the name of a tensor that is missing or unexpected -> what to do about it.
    """

    noun: str
    prefixes: tuple[str, ...]
    marks: tuple[str, ...]
    layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    swapped: tuple[str, ...] = ()
    counted_back: str = ""
    passed_over: tuple[str, ...] = ()
    hints: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def patterns(self) -> list[tuple[re.Pattern[str], tuple[str, ...]]]:
        """``layers`` with what matches their names."""
        return [(re.compile(re.escape(name).replace(r"\{\}", r"(\d+)")), to) for name, to in self.layers.items()]

    def prefix_in(self, names: Iterable[str]) -> str | None:
        """What stands before the part's names in a file with these; None where it is not in it."""
        known = set(names)
        return next((prefix for prefix in self.prefixes for mark in self.marks if f"{prefix}{mark}" in known), None)

    def layers_of(self, ours: Iterable[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The file's layers for a model of diffusers with the layers ``ours``, each with those it stands for; a layer
        that has the same name in both stands for itself."""
        left = dict.fromkeys(ours)
        for layer in list(left):
            if layer not in left:
                continue
            theirs, parts = next(
                (
                    (name.format(*match.groups()), tuple(each.format(*match.groups()) for each in to))
                    for name, to in self.layers.items()
                    for each in to
                    if (match := re.fullmatch(re.escape(each).replace(r"\{\}", r"(\d+)"), layer))
                ),
                (layer, (layer,)),
            )
            for part in parts:
                left.pop(part, None)
            yield theirs, parts


def require_part(file: Path, part: str, parts: Mapping[str, Names]) -> None:
    """Refuse a file that does not hold a part of a model, and say what it is.

    Raises:
        BaseModelError: another kind of file, or missing or damaged.
    """
    setting, wanted = f"model.{part}", parts[part].noun
    if not file.is_file():
        seen = "this is a folder" if file.is_dir() else "there is no such file"
        raise BaseModelError(
            f"{seen}: {setting} takes a .safetensors file",
            where=str(file),
            hint=f"correct {setting}, or leave it out",
        )
    names = tensor_names([file])
    if parts[part].prefix_in(names) is not None:
        return
    seen, hint = f"something else: it has {some_names(sorted(names), 3)}", f"wanted {parts[part].marks[0]} among them"
    for pattern, noun in _OTHER_MODELS.items():
        if any(re.search(pattern, name) for name in names):
            seen, hint = noun, "to start from a LoRA, set lora.init_from" if noun == "a LoRA" else f"name {wanted}"
            break
    for other, each in parts.items():
        if each.prefix_in(names) is not None:
            seen, hint = each.noun, f"name it as model.{other}"
    raise BaseModelError(f"this is not {wanted} but {seen}", where=str(file), hint=hint)


def tensor_names(files: Iterable[Path]) -> list[str]:
    """The names of all tensors in files, from their headers.

    Raises:
        BaseModelError: a file is missing or damaged, or no safetensors file.
    """
    return [name for file in files for name in header_of(file).tensors]


def stream(
    files: Iterable[Path], names: Names, shapes: Mapping[str, torch.Size], content: bool = True
) -> Iterator[tuple[str, Weight]]:
    """Every tensor of a part as diffusers names it, memory-mapped, in the order of the files.

    Args:
        files: the shards, or the one file.
        shapes: of the part's parameters, by diffusers' names.
        content: give the values; without, tensors of the right shapes on the meta device.

    Raises:
        BaseModelError: a file is missing or damaged, or a tensor of the wrong shape or in an unknown packing.
    """
    files = list(files)
    prefix = names.prefix_in(tensor_names(files)) or ""
    for file in files:
        with opened(file) as tensors:
            known = set(tensors.keys())
            for whole in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                name = whole.removeprefix(prefix)
                layer, _, leaf = name.rpartition(".")
                if not whole.startswith(prefix) or leaf in _UNREAD or name in names.passed_over:
                    continue
                weight = _tensor(tensors, whole, content)
                scale = next((scale for each in _SCALES if (scale := f"{prefix}{layer}.{each}") in known), None)
                if not weight.is_floating_point():
                    raise wrong_weights(file, f"{whole} is packed in {weight.dtype}: wanted bf16, fp16, fp32 or fp8")
                factor = _tensor(tensors, scale, content) if scale and leaf == "weight" else None
                yield from _converted(file, layer, leaf, weight, factor, names, shapes)


def _tensor(tensors: Any, name: str, content: bool) -> torch.Tensor:
    tensor: torch.Tensor = tensors.get_tensor(name)
    return tensor if content else torch.empty_like(tensor, device="meta")


def _converted(
    file: Path,
    layer: str,
    leaf: str,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    names: Names,
    shapes: Mapping[str, torch.Size],
) -> Iterator[tuple[str, Weight]]:
    """One tensor under diffusers' names: in parts where it is fused there."""
    leaf = "weight" if leaf == "scale" else leaf
    to = _layers_of(layer, names, shapes)
    rows = [shapes.get(f"{each}.{leaf}", (0,))[0] for each in to] if len(to) > 1 else list(weight.shape[:1])
    if len(to) > 1 and sum(rows) != weight.shape[0]:
        raise wrong_weights(file, f"{layer}.{leaf} has {weight.shape[0]} rows, should have {sum(rows)}")
    if scale is not None and scale.numel() not in (1, sum(rows)):
        raise wrong_weights(file, f"{layer} has scales {list(scale.shape)}: wanted one, or one for each row")
    parts = weight.split(rows) if len(to) > 1 else (weight,)
    scales = scale.flatten().split(rows) if scale is not None and scale.numel() > 1 else [scale] * len(to)
    for each, part, factor in zip(to, parts, scales, strict=True):
        if part.ndim == 4 and len(shapes.get(f"{each}.{leaf}", ())) == 2:
            part = part.flatten(1)
        if each in names.swapped and each != layer:
            part = torch.cat(part.chunk(2)[::-1])
            factor = factor if factor is None or factor.numel() == 1 else torch.cat(factor.chunk(2)[::-1])
        yield f"{each}.{leaf}", part if factor is None else Scaled(part, factor)


def _layers_of(layer: str, names: Names, shapes: Mapping[str, torch.Size]) -> tuple[str, ...]:
    """The layers of diffusers that a layer of the file stands for."""
    for pattern, to in names.patterns:
        if found := pattern.fullmatch(layer):
            named = tuple(each.format(*found.groups()) for each in to)
            return tuple(_counted_back(each, names.counted_back, shapes) for each in named)
    return (layer,)


def _counted_back(layer: str, blocks: str, shapes: Mapping[str, torch.Size]) -> str:
    if not blocks or not layer.startswith(f"{blocks}."):
        return layer
    number, _, rest = layer.removeprefix(f"{blocks}.").partition(".")
    last = max(int(name.removeprefix(f"{blocks}.").partition(".")[0]) for name in shapes if name.startswith(blocks))
    return f"{blocks}.{last - int(number)}.{rest}"
