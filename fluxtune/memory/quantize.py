"""The precisions of 8 and 4 bits that frozen linear layers can be held in, and how a layer becomes one of them.

Only weights are quantised; biases and everything that is not a linear layer keep the precision of the computation.
Knows layers, not FLUX: the caller says which layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any, Literal, TypeGuard

import torch
from torch import nn

QuantizedPrecision = Literal["int8", "int8-weights", "fp8", "nf4"]


@dataclass(frozen=True)
class Quantization:
    """A way to hold weights.

    Attributes:
        module: of this room, with its layer and four functions: ``empty`` (the layer without weight and bias),
            ``quantize`` (a weight into it), ``packed`` (what it holds its weight in) and ``unpack`` (that into it).
        bytes_a_weight: with the scales of blocks; scales of rows are too few to count.
        float16_products: products pass through float16, whose range some layers exceed.
        packed_by: the library that packs the weights; another version may pack them differently.
    """

    module: str
    bytes_a_weight: float
    float16_products: bool = False
    packed_by: str | None = None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        # Not before it is needed: bitsandbytes takes seconds to import.
        function: Callable[..., Any] = getattr(import_module(f"fluxtune.memory.{self.module}"), name)
        return function


QUANTIZATIONS: dict[str, Quantization] = {
    "int8-weights": Quantization("row_wise", 1.0),
    "int8": Quantization("eight_bit", 1.0, float16_products=True, packed_by="bitsandbytes"),
    "fp8": Quantization("row_wise", 1.0),
    "nf4": Quantization("four_bit", 0.5 + (1 + 4 / 256) / 64, packed_by="bitsandbytes"),
}
"""By the name that `memory.base_precision` has for it."""


def is_quantized(precision: str | None) -> TypeGuard[QuantizedPrecision]:
    """Whether weights held so are layers of their own kind, not tensors of fractions."""
    return precision in QUANTIZATIONS


def quantized_linear(
    layer: nn.Linear, weight: torch.Tensor, precision: QuantizedPrecision, dtype: torch.dtype, device: str
) -> nn.Module:
    """A layer that computes what ``layer`` would with ``weight``, and keeps none of its inputs for the backward.

    Args:
        layer: the layer it stands for; its bias is taken over, its own weight (which may be on the meta device) is not.
        weight: ``[out, in]``, in any floating precision.
        precision: ``int8`` (LLM.int8(), arXiv 2208.07339, one scale a row, inputs rounded to 8 bits as well),
            ``int8-weights`` and ``fp8`` (one scale a row), or ``nf4`` (arXiv 2305.14314, blocks of 64 values, their
            scales quantised again).
        dtype: precision in which the layer takes and gives activations, and of its bias.
        device: where the quantised weight lives; it is quantised there.
    """
    made = _empty(layer, precision, dtype)
    QUANTIZATIONS[precision].quantize(made, weight.to(device))
    return made


def packed_tensors(layer: nn.Module, precision: QuantizedPrecision) -> dict[str, torch.Tensor]:
    """What a quantised layer that has not computed yet holds its weight in; ``packed_linear`` takes it."""
    packed: dict[str, torch.Tensor] = QUANTIZATIONS[precision].packed(layer)
    return packed


def packed_linear(
    layer: nn.Linear, packed: Mapping[str, torch.Tensor], precision: QuantizedPrecision, dtype: torch.dtype, device: str
) -> nn.Module:
    """The layer that ``quantized_linear`` would make, to the bit, of what ``packed_tensors`` gave of one like it."""
    made = _empty(layer, precision, dtype)
    QUANTIZATIONS[precision].unpack(made, {name: tensor.to(device) for name, tensor in packed.items()})
    return made


def packed_bytes(layer: nn.Linear, precision: QuantizedPrecision) -> int:
    """Bytes of ``packed_tensors`` of such a layer, nearly."""
    values = layer.in_features * layer.out_features
    return round(values * QUANTIZATIONS[precision].bytes_a_weight) + 4 * layer.out_features


def made_by(precision: QuantizedPrecision) -> str:
    """What packs weights so, with its version where that is a library."""
    library = QUANTIZATIONS[precision].packed_by
    return f"{library} {metadata.version(library)}" if library else QUANTIZATIONS[precision].module


def replace_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put ``module`` in the place of the sub-module ``path`` of ``root``."""
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def _empty(layer: nn.Linear, precision: QuantizedPrecision, dtype: torch.dtype) -> nn.Module:
    made: nn.Module = QUANTIZATIONS[precision].empty(layer, precision, dtype)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return made
