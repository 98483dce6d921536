"""LoRAs put into the base model: a checkpoint of its own, tensor by tensor, in the memory of a few of them.

As a diffusers folder, whose other parts are copied, or as a single file of the transformer with the published
checkpoint's names, which ComfyUI loads as a diffusion model.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fluxtune import files
from fluxtune.errors import BaseModelError, UsageError, VerificationError, some_names
from fluxtune.events import Phase, Progress, Sink
from fluxtune.exporting.methods import Checkpoint
from fluxtune.flux.base import Base, empty_part
from fluxtune.flux.single_files import stream
from fluxtune.flux.stored import plain
from fluxtune.flux.weights import opened, shapes_of
from fluxtune.lora.adapter import LoraLayer
from fluxtune.tensor_writing import Spec, TensorWriter, write_tensors

SHARD_BYTES = 10 * 10**9
"""As diffusers splits its files."""
_PART = "transformer"
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp8": torch.float8_e4m3fn}

Loras = Sequence[tuple[Mapping[str, LoraLayer], float]]


@dataclass(frozen=True)
class Fused:
    """What was written: ``changed`` layers of the transformer, ``tensors`` and ``bytes`` of it in all."""

    output: Path
    files: list[Path]
    changed: int
    tensors: int
    bytes: int
    error: float | None


@torch.no_grad()
def fuse(
    base: Base,
    loras: Loras,
    form: Checkpoint,
    output: Path,
    dtype: str,
    on_event: Sink,
    verify: bool = True,
    shard_bytes: int = SHARD_BYTES,
) -> Fused:
    """Write the base model with LoRAs in it.

    Args:
        loras: layers and weight of each.
        output: the file, or the folder to make.
        dtype: ``bf16``, ``fp16``, ``fp32`` or, of a single file, ``fp8``: matrices as float8_e4m3fn, the rest as bf16.
        verify: read every changed weight back and compare it.

    Raises:
        UsageError: layers of text encoders, or a place or precision that cannot be.
        BaseModelError: the base model lacks a layer of a LoRA, or is damaged.
        StorageError: there is no room, or it cannot be written.
        VerificationError: a weight reads back otherwise.
    """
    shapes = shapes_of(empty_part(base, _PART))
    _require_fit(loras, shapes, base)
    layout = _Layout(base, shapes, _DTYPES[dtype], single=form is Checkpoint.COMFYUI)
    total = sum(spec.bytes for spec in layout.specs.values())
    whole = form is Checkpoint.DIFFUSERS
    beside = sum(source.stat().st_size for source in _others(base)) if whole else 0
    files.require_space(output.absolute().parent, total + beside, "the fused model's files")
    on_event(Phase("fuse", f"{len(layout.specs)} tensors, {total / 2**30:.1f} GiB"))
    if form is Checkpoint.COMFYUI:
        if output.suffix.lower() != ".safetensors":
            raise UsageError(
                "a single file ends in .safetensors", where="--output", hint=f"--output {output}.safetensors"
            )
        return _single_file(output, layout, loras, verify, on_event)
    if named := sorted(set(base.files) - {_PART}):
        raise UsageError(
            f"a folder is written with the other parts of the base model's own folder, not with model.{named[0]}",
            where="--format",
            hint="take --format comfyui, or leave model." + named[0] + " out",
        )
    files.require_new_folder(output, "the model")
    with files.whole_folder(output) as folder:
        _copy_others(base, folder, on_event)
        shards = _shards(layout.specs, shard_bytes)
        names = [_shard_name(number, len(shards)) for number in range(len(shards))]
        for name, tensors in zip(names, shards, strict=True):
            _write(folder / _PART / name, layout, tensors, loras, on_event)
        if len(shards) > 1:
            placed = {tensor: name for name, tensors in zip(names, shards, strict=True) for tensor in tensors}
            index = {"metadata": {"total_size": total}, "weight_map": placed}
            files.write_json(folder / _PART / "diffusion_pytorch_model.safetensors.index.json", index)
        fused = _told(output, [folder / _PART / name for name in names], layout, loras, verify, on_event)
    return replace(fused, files=[output / _PART / name for name in names])


def _single_file(output: Path, layout: _Layout, loras: Loras, verify: bool, on_event: Sink) -> Fused:
    told: list[Fused] = []

    def check(file: Path) -> None:
        told.append(_told(output, [file], layout, loras, verify, on_event))

    _write(output, layout, list(layout.specs), loras, on_event, check)
    return replace(told[0], files=[output])


class _Layout:
    """Where each tensor of the base goes: the file's name of it, its first row there, and whether halves change places.

    ``specs`` are the tensors of the file.
    """

    def __init__(self, base: Base, shapes: Mapping[str, torch.Size], dtype: torch.dtype, single: bool) -> None:
        self.base, self.shapes = base, shapes
        self.places: dict[str, tuple[str, int, bool]] = {}
        rows: dict[str, int] = {}
        target_of = _single_names(base, shapes) if single else {name: (name, False) for name in shapes}
        # In the order in which the parts of a fused layer stand.
        for name, (target, swapped) in target_of.items():
            self.places[name] = (target, rows.get(target, 0), swapped)
            rows[target] = rows.get(target, 0) + (shapes[name][0] if shapes[name] else 0)
        self.specs: dict[str, Spec] = {}
        for name, (target, _) in target_of.items():
            shape = shapes[name]
            kept = dtype if dtype.itemsize > 1 or len(shape) == 2 else torch.bfloat16
            self.specs[target] = Spec(kept, (rows[target], *shape[1:]) if shape else ())

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of the base, by diffusers' names."""
        for name, weight in stream(self.base.weight_files(_PART), self.base.family.names[_PART], self.shapes):
            yield name, plain(weight)


def _single_names(base: Base, shapes: Mapping[str, torch.Size]) -> dict[str, tuple[str, bool]]:
    """Tensor of diffusers -> (tensor of the published checkpoint, whether its halves are swapped), parts in order."""
    names = base.family.names[_PART]
    layers = dict.fromkeys(name.rpartition(".")[0] for name in shapes)
    found: dict[str, tuple[str, bool]] = {}
    for theirs, ours in names.layers_of(layers):
        for layer in ours:
            for leaf in ("weight", "bias"):
                if f"{layer}.{leaf}" in shapes:
                    own = "scale" if theirs.endswith("_norm") else leaf
                    found[f"{layer}.{leaf}"] = (f"{theirs}.{own}", layer in names.swapped)
    return found


def _write(
    path: Path,
    layout: _Layout,
    tensors: Sequence[str],
    loras: Loras,
    on_event: Sink,
    check: Callable[[Path], None] = lambda _: None,
) -> None:
    wanted, specs = set(tensors), layout.specs

    def fill(writer: TensorWriter) -> None:
        done = 0
        for name, weight in layout.weights():
            target, row, swapped = layout.places[name]
            if target in wanted:
                weight = _changed(name, weight, loras)
                _require_range(name, weight, specs[target].dtype, path)
                writer.put(target, torch.cat(weight.chunk(2)[::-1]) if swapped and target != name else weight, row)
                done += 1
                on_event(Progress(f"write {path.name}", done, len(wanted_sources), "tensors"))

    wanted_sources = [name for name, (target, _, _) in layout.places.items() if target in wanted]
    write_tensors(path, {name: specs[name] for name in tensors}, {"format": "pt"}, fill, check)


def _require_range(name: str, weight: torch.Tensor, dtype: torch.dtype, path: Path) -> None:
    """Refuse values that a precision does not hold, which a cast would make infinite or cut off."""
    largest = float(torch.stack(weight.aminmax()).abs().max()) if weight.numel() else 0.0
    # Written so that a value that is no number fails too.
    if not largest <= torch.finfo(dtype).max:
        raise VerificationError(
            f"{name} has values up to {largest:.1e} with the LoRA, and {str(dtype).removeprefix('torch.')} holds "
            f"{torch.finfo(dtype).max:.1e} at most",
            where=path.name,
            hint="give the LoRA a smaller weight, or take --dtype bf16",
        )


def _changed(name: str, weight: torch.Tensor, loras: Loras) -> torch.Tensor:
    """``W + sum of weight * scale * B A``, with what a DoRA adds, in float32; as it is where no LoRA changes it."""
    path = f"{_PART}.{name.removesuffix('.weight')}"
    changes = [(layers[path], each) for layers, each in loras if name.endswith(".weight") and path in layers]
    if not changes:
        return weight
    total = weight.float()
    for layer, each in changes:
        # No number is too large to multiply a tensor by: the result is infinite then, and refused.
        total = total.addmm(layer.b.float() * (each * layer.scale), layer.a.float())
        if layer.growth is not None:
            total += each * layer.scale * layer.growth[:, None] * weight.float()
    return total


def _told(output: Path, paths: list[Path], layout: _Layout, loras: Loras, verify: bool, on_event: Sink) -> Fused:
    changed = {path for layers, _ in loras for path in layers}
    error = _verified(output, paths, layout, loras, changed, on_event) if verify else None
    size = sum(path.stat().st_size for path in paths)
    return Fused(output, paths, len(changed), len(layout.specs), size, error)


def _verified(
    output: Path, paths: list[Path], layout: _Layout, loras: Loras, changed: set[str], on_event: Sink
) -> float:
    """The largest error of a changed weight that reads back, relative to its largest value.

    Raises:
        VerificationError: one is off by more than the precision explains.
    """
    places: dict[str, Path] = {}
    for path in paths:
        with opened(path) as file:
            places |= dict.fromkeys(file.keys(), path)
    worst, done = 0.0, 0
    for name, weight in layout.weights():
        if f"{_PART}.{name.removesuffix('.weight')}" not in changed or not name.endswith(".weight"):
            continue
        target, row, swapped = layout.places[name]
        with opened(places[target]) as file:
            kept = file.get_slice(target)[row : row + weight.shape[0]].float()
        if swapped and target != name:
            kept = torch.cat(kept.chunk(2)[::-1])
        wanted = _changed(name, weight, loras)
        largest = float(wanted.abs().max()) or 1.0
        error = float((kept - wanted).abs().max()) / largest
        if not error <= torch.finfo(layout.specs[target].dtype).eps:
            raise VerificationError(
                f"{name} reads back otherwise, by {error:.1e} of its largest value",
                where=str(output),
                hint="write it again, on another disk if it stays so; else it is a bug: please report it",
            )
        worst, done = max(worst, error), done + 1
        on_event(Progress("verify", done, len(changed), "layers"))
    return worst


def _require_fit(loras: Loras, shapes: Mapping[str, torch.Size], base: Base) -> None:
    for layers, _ in loras:
        if others := [path for path in layers if not path.startswith(f"{_PART}.")]:
            raise UsageError(
                f"only the transformer is fused, and this LoRA changes text encoders too: {some_names(others)}",
                where="LORA",
                hint="use the LoRA beside the base model",
            )
        for path, layer in layers.items():
            shape = shapes.get(f"{path.removeprefix(f'{_PART}.')}.weight")
            own = (layer.b.shape[0], layer.a.shape[1])
            if shape is None or tuple(shape) != own:
                seen = "lacks this layer" if shape is None else f"has {list(shape)} there"
                raise BaseModelError(
                    f"the LoRA changes {path} {list(own)}, and {base.name} {seen}",
                    where=base.name,
                    hint="name the model that the LoRA was trained on",
                )


def _copy_others(base: Base, folder: Path, on_event: Sink) -> None:
    """Everything of the base model but the transformer's weights."""
    for source in _others(base):
        place = source.relative_to(base.folder)
        on_event(Phase("copy", str(place)))
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        with files.storage_errors(folder / place):
            shutil.copyfile(source, folder / place)


def _others(base: Base) -> list[Path]:
    found = []
    for source in sorted(base.folder.rglob("*")):
        parts = source.relative_to(base.folder).parts
        # On a hub, published single files lie beside the folders.
        beside = len(parts) == 1 and source.suffix == ".safetensors"
        weights = parts[0] == _PART and source.name != "config.json"
        if source.is_file() and not (beside or weights or any(part.startswith(".") for part in parts)):
            found.append(source)
    return found


def _shards(specs: Mapping[str, Spec], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + spec.bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += spec.bytes
    return shards


def _shard_name(number: int, of: int) -> str:
    if of == 1:
        return "diffusion_pytorch_model.safetensors"
    return f"diffusion_pytorch_model-{number + 1:05d}-of-{of:05d}.safetensors"
