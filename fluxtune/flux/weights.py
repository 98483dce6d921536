"""Weights from files into modules, one tensor at a time.

A module is made on the meta device and takes each tensor as it comes from a memory-mapped file: straight to its device,
quantised on the way. System memory never holds a second copy of a model, nor the device more than it and a layer.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from fluxtune.errors import BaseModelError
from fluxtune.events import Progress, Sink
from fluxtune.flux.kept_weights import KeptWeights
from fluxtune.memory.heap import trim_heap
from fluxtune.memory.offload import to_system_memory
from fluxtune.memory.quantize import QuantizedPrecision, is_quantized, quantized_linear, replace_module
from fluxtune.tensor_files import Header, TensorFileError, read_header

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_REPORT_SECONDS = 0.5
_SHARD = re.compile(r"[^/\\:\x00]+\.safetensors")
_TRIM_BYTES = 16 * 2**20
"""Of weights that were taken, after which what their conversion left behind is given back."""


@dataclass(frozen=True)
class Scaled:
    """A tensor that is stored as small numbers and a scale, one or one for each row; multiplied where it is wanted."""

    values: torch.Tensor
    scale: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        """Of the values."""
        return self.values.shape

    @property
    def nbytes(self) -> int:
        """As stored."""
        return self.values.nbytes

    def to(self, device: str, dtype: torch.dtype) -> torch.Tensor:
        """The product on a device, taken in float32."""
        scale = self.scale.to(device).float().reshape(-1, *[1] * (self.values.ndim - 1))
        return self.values.to(device).float().mul_(scale).to(dtype)


Weight: TypeAlias = torch.Tensor | Scaled
Weights: TypeAlias = Iterable[tuple[str, Weight]]


@dataclass(frozen=True)
class Holding:
    """How a module's weights are held.

    Attributes:
        dtype: of the computation, and of what ``precision`` says nothing of.
        precision: of the configuration: of all weights, or where it quantises, of the layers that ``quantises`` names.
        quantises: whether the linear layer of a path is quantised, where ``precision`` does that.
        kept: packed weights that were quantised before.
        stays: whether the weights of a path stay in system memory, unquantised.
        streams: whether a path's layer leaves the device for system memory when it is whole.
    """

    dtype: torch.dtype
    device: str
    precision: str | None = None
    quantises: Callable[[str], bool] = lambda path: True
    kept: KeptWeights | None = None
    stays: Callable[[str], bool] = lambda path: False
    streams: Callable[[str], bool] = lambda path: False

    @property
    def quantized(self) -> QuantizedPrecision | None:
        """The precision, where it is one that quantises."""
        return self.precision if is_quantized(self.precision) else None

    @property
    def plain(self) -> torch.dtype:
        """What is not quantised."""
        return DTYPES.get(self.precision or "", self.dtype)


def checked(
    weights: Weights, shapes: Mapping[str, torch.Size], where: str, hints: Mapping[str, str] | None = None
) -> Iterator[tuple[str, Weight]]:
    """The same weights, if they are those of a module.

    Args:
        shapes: of the module's parameters, by their names.
        where: the place that errors name.
        hints: part of the name of a tensor -> what to do where it is missing or unexpected.

    Raises:
        BaseModelError: a weight is missing, unexpected or of the wrong shape.
    """

    def told_as(message: str, name: str) -> BaseModelError:
        return wrong_weights(where, message, next((hint for part, hint in (hints or {}).items() if part in name), None))

    absent = dict(shapes)
    for name, weight in weights:
        if name not in shapes:
            raise told_as(f"unexpected tensor {name}", name)
        if weight.shape != shapes[name]:
            raise told_as(f"{name} is {list(weight.shape)}, should be {list(shapes[name])}", name)
        absent.pop(name, None)
        yield name, weight
    if absent:
        first = next(iter(absent))
        raise told_as(f"{len(absent)} tensors are missing, the first is {first}", first)


def fill(module: nn.Module, weights: Weights, holding: Holding, where: str) -> None:
    """Give a module on the meta device its weights, frozen, and take its buffers to their device.

    Args:
        weights: (name, tensor) of every parameter, in any order; from ``checked``.
        where: the place that errors name.

    Raises:
        BaseModelError: a weight is not finite.
    """
    # Files do not have them: they were made with the module, in system memory.
    for name, buffer in list(module.named_buffers()):
        path, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(path), leaf, buffer.to(holding.device))
    untrimmed = 0
    for name, weight in weights:
        path, _, leaf = name.rpartition(".")
        layer = module.get_submodule(path)
        linear = layer if type(layer) is nn.Linear and leaf == "weight" else None
        precision = holding.quantized if linear is not None else None
        precision = precision if precision and holding.quantises(path) else None
        # What was quantised before is not read again.
        if not (precision and holding.kept and holding.kept.has(path)) and not is_finite(weight):
            raise wrong_weights(where, f"{name} has values that are no finite numbers")
        if holding.stays(path):
            # Where the precision is that of the file, this stays a part of the mapped file: no process memory.
            held = weight.to(device="cpu", dtype=holding.plain)
            setattr(layer, leaf, nn.Parameter(held, requires_grad=False))
        elif precision and linear is not None:
            replace_module(module, path, _quantized(linear, path, weight, precision, holding))
        else:
            held = weight.to(device=holding.device, dtype=holding.plain)
            setattr(layer, leaf, nn.Parameter(held, requires_grad=False))
        if holding.streams(path) and not any(each.is_meta for each in module.get_submodule(path).parameters()):
            to_system_memory(module.get_submodule(path))
        untrimmed += weight.nbytes
        if untrimmed >= _TRIM_BYTES:
            trim_heap()
            untrimmed = 0
    trim_heap()
    module.requires_grad_(False)
    module.eval()


def is_finite(weight: Weight) -> bool:
    """Whether all values are finite, found at the speed of memory and without a copy."""
    if isinstance(weight, Scaled):
        return is_finite(weight.values) and is_finite(weight.scale)
    if weight.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        # Its numbers without their sign, as bytes: what is not finite has the highest.
        first_bad = 0x7C if weight.dtype == torch.float8_e5m2 else 0x7F
        return not weight.numel() or int((weight.view(torch.uint8) & 0x7F).max()) < first_bad
    return not weight.numel() or all(map(math.isfinite, torch.stack(weight.aminmax()).tolist()))


def shapes_of(module: nn.Module) -> dict[str, torch.Size]:
    """The shapes of a module's parameters by their names; of those that are tied, of the first."""
    return {name: parameter.shape for name, parameter in module.named_parameters()}


def _quantized(
    layer: nn.Linear, path: str, weight: Weight, precision: QuantizedPrecision, holding: Holding
) -> nn.Module:
    def quantize() -> nn.Module:
        # What is stored in float8 without a scale need not be rounded again.
        source = weight if isinstance(weight, torch.Tensor) else weight.to(holding.device, holding.dtype)
        return quantized_linear(layer, source, precision, holding.dtype, holding.device)

    return holding.kept.take(path, layer, quantize) if holding.kept else quantize()


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A safetensors file, mapped into memory.

    Raises:
        BaseModelError: it is missing or damaged, or no safetensors file.
    """
    header_of(file)
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise wrong_weights(file, f"the file is damaged ({error})") from error


def header_of(file: Path) -> Header:
    """The header of a base model's file, true of the file.

    Raises:
        BaseModelError: it is missing or damaged, or no safetensors file.
    """
    try:
        return read_header(file)
    except FileNotFoundError:
        raise wrong_weights(file, "the file is missing") from None
    except TensorFileError as error:
        raise wrong_weights(file, str(error), error.hint) from error
    except OSError as error:
        raise wrong_weights(file, f"the file cannot be read ({error.strerror or error})") from error


def weight_files(folder: Path) -> list[Path]:
    """The shards of the index, or the one file: never a variant that lies beside them.

    Raises:
        BaseModelError: there are none.
    """
    stems = [folder / f"{stem}.safetensors" for stem in ("diffusion_pytorch_model", "model")]
    index = next((index for stem in stems if (index := stem.with_name(f"{stem.name}.index.json")).is_file()), None)
    if index is not None:
        files = [folder / name for name in _shards_in(index)]
    else:
        files = [stem for stem in stems if stem.is_file()][:1] or sorted(folder.glob("*.safetensors"))
    if not files:
        raise BaseModelError(
            "there are no .safetensors weights here", where=str(folder), hint="download the model again"
        )
    return files


def _shards_in(index: Path) -> list[str]:
    """The names of the files that an index lists, which lie beside it.

    Raises:
        BaseModelError: it lists something else.
    """
    listed = read_json(index).get("weight_map")
    names: list[Any] = list(listed.values()) if isinstance(listed, dict) else [listed]
    if odd := [name for name in names if not isinstance(name, str) or not _SHARD.fullmatch(name)]:
        raise wrong_weights(index, f"this is no index of .safetensors files beside it: it names {str(odd[0])!r:.80}")
    return sorted(set(names))


def told(weights: Weights, total: int, task: str, on_event: Sink) -> Iterator[tuple[str, Weight]]:
    """The same weights, with progress in bytes as they are taken.

    Args:
        total: bytes of all.
    """
    started = last = time.monotonic()
    done = 0
    for name, weight in weights:
        yield name, weight
        done += weight.nbytes
        now = time.monotonic()
        if now - last >= _REPORT_SECONDS and done < total:
            last, rate = now, done / (now - started)
            on_event(Progress(task, done, total, "B", rate, (total - done) / rate))
    on_event(Progress(task, done, total, "B", done / max(1e-9, time.monotonic() - started), 0.0))


def read_json(file: Path) -> dict[str, Any]:
    """The table in a JSON file of a base model.

    Raises:
        BaseModelError: it is missing or no JSON.
    """
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise wrong_weights(file, "the file is missing") from None
    except ValueError as error:
        raise wrong_weights(file, f"the file is not JSON ({error})") from error


def wrong_weights(place: Path | str, message: str, hint: str | None = None) -> BaseModelError:
    """What to raise over files that are not what they should be."""
    usual = "the base model is incomplete or damaged: download it again"
    return BaseModelError(message, where=str(place), hint=hint or usual)
