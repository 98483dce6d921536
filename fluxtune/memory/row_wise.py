"""Frozen linear layers of 8 bits with one scale a row, by plain torch: whole numbers or float8.

Scales and rounding are torchao's (`Int8WeightOnlyConfig` and `Float8WeightOnlyConfig` of 0.18, one scale a row), and a
test holds them to it. Its layers are not used. Their product is an ordinary one of the unpacked weight, which autograd
keeps until the backward: without recomputation, all weights are there a second time, in 16 bits. They answer float32
under autocast, peft makes an adapter of bfloat16 for them, and a row of zeros becomes NaN in float8. What is stored
suits products of 8 bits: rows of ``[out, in]`` along which sums run, and what a sum is multiplied by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from fluxtune.memory.recompute import kept_product

RowPrecision = Literal["int8-weights", "fp8"]


class _Format(NamedTuple):
    stored: torch.dtype
    largest: float
    """What the largest value of a row is divided to. For whole numbers 127.5, which is cut to 127: half a step, as
    rounding takes anywhere."""
    smallest_scale: float


_FORMATS = {
    "int8-weights": _Format(torch.int8, 127.5, torch.finfo(torch.float32).eps),
    "fp8": _Format(torch.float8_e4m3fn, 448.0, torch.finfo(torch.float32).tiny),
}
_VALUES_AT_ONCE = 2**22


def quantize_rows(weight: torch.Tensor, precision: RowPrecision) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantises ``[out, in]`` where it is, a few rows at a time, so that beside the result little is held.

    Returns:
        The values ``[out, in]`` in 8 bits, and the float32 scales ``[out, 1]`` that they are multiplied by. What is
        float8 already stays as it is, with scales of 1.
    """
    form = _FORMATS[precision]
    if weight.dtype == form.stored:
        return weight, torch.ones(len(weight), 1, device=weight.device)
    values = torch.empty(weight.shape, dtype=form.stored, device=weight.device)
    scales = torch.empty(len(weight), 1, device=weight.device)
    number = max(1, _VALUES_AT_ONCE // weight.shape[1])
    for first in range(0, len(weight), number):
        rows = weight[first : first + number].float()
        scale = rows.abs().amax(dim=1, keepdim=True).div_(form.largest).clamp_(min=form.smallest_scale)
        if precision == "fp8":
            rows = (rows / scale).clamp_(-448, 448)
        else:
            rows = (rows * (1.0 / scale)).round_().clamp_(-128, 127)
        values[first : first + number] = rows.to(form.stored)
        scales[first : first + number] = scale
    return values, scales


def empty(layer: nn.Linear, precision: RowPrecision, dtype: torch.dtype) -> RowQuantizedLinear:
    """The layer of 8 bits that takes the place of ``layer``, without weight and bias."""
    return RowQuantizedLinear(layer.in_features, layer.out_features, layer.bias is not None, precision, dtype)


def quantize(made: RowQuantizedLinear, weight: torch.Tensor) -> None:
    """Gives a layer its weight ``[out, in]``."""
    made.hold(*quantize_rows(weight, made.precision))


def packed(made: RowQuantizedLinear) -> dict[str, torch.Tensor]:
    """What a layer holds its weight in."""
    return {"weight": made.weight.data, "scales": made.scales}


def unpack(made: RowQuantizedLinear, packed: Mapping[str, torch.Tensor]) -> None:
    """Gives a layer what another one like it was ``packed`` in."""
    made.hold(packed["weight"], packed["scales"])


class RowQuantizedLinear(nn.Linear):
    """Computes with the weight ``values * scales`` in the precision ``dtype``; made on the meta device.

    Attributes:
        weight: the bytes of ``values``, as int8 also where they are float8: models and libraries cast activations,
            or the adapter, to whatever fractions a weight claims to be.
        scales: ``[out, 1]``, float32.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool, precision: RowPrecision, dtype: torch.dtype) -> None:
        super().__init__(inputs, outputs, bias=bias, device="meta", dtype=dtype)
        self.requires_grad_(False)
        self.precision, self.dtype = precision, dtype
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=torch.int8, device="meta"), requires_grad=False)
        self.scales: torch.Tensor
        self.register_buffer("scales", torch.empty(outputs, 1, dtype=torch.float32, device="meta"))

    def hold(self, values: torch.Tensor, scales: torch.Tensor) -> None:
        """Takes what `quantize_rows` gave."""
        self.weight = nn.Parameter(values.view(torch.int8), requires_grad=False)
        self.scales = scales

    def unpacked(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight ``[out, in]`` in ``dtype``."""
        return self.weight.view(_FORMATS[self.precision].stored).to(dtype, copy=True).mul_(self.scales)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``[..., in]`` -> ``[..., out]``, in ``dtype``."""
        result: torch.Tensor = _Product.apply(input.to(self.dtype), self)
        return result


class _Product(torch.autograd.Function):
    """The weight is unpacked for each product, forward and backward, and nothing is saved."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, layer: RowQuantizedLinear) -> torch.Tensor:
        ctx.layer = layer
        return kept_product(lambda: functional.linear(input, layer.unpacked(layer.dtype), layer.bias))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.matmul(gradient, ctx.layer.unpacked(ctx.layer.dtype)), None
