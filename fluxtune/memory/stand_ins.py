"""Layers that hold and allocate what quantised ones do, on tensors without content: bitsandbytes refuses those.

They follow bitsandbytes 0.50 (`autograd/_functions.py`, `functional.py`, `backends/cuda/ops.py`) and `row_wise`. Where
bitsandbytes may choose a fused 4-bit product for few tokens, they take the other way, which needs more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fluxtune.memory.quantize import QuantizedPrecision
from fluxtune.memory.recompute import kept_product

_BLOCK, _NESTED = 64, 256
"""Values of a 4-bit block, and scales of a block of scales."""


class QuantizedStandIn(nn.Linear):
    """Computes nothing, with the memory of `quantize.quantized_linear`'s layer; made on the meta device.

    Args:
        layer: the layer that it stands for.
        dtype: precision of the activations and of the bias.
        as_cuda: allocate on the way what a card does; bitsandbytes multiplies 8-bit weights otherwise on a processor.
    """

    def __init__(self, layer: nn.Linear, precision: QuantizedPrecision, dtype: torch.dtype, as_cuda: bool) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta", dtype=dtype)
        self.requires_grad_(False)
        self.precision, self.dtype = precision, dtype
        self.rounds_inputs = precision == "int8" and as_cuda
        self.scales_copies = precision != "nf4" and not as_cuda and dtype != torch.float32
        values = layer.in_features * layer.out_features
        if precision == "nf4":
            # Labelled with the precision of the products, as the real ones are.
            packed = torch.empty(values // 2 // dtype.itemsize, 1, dtype=dtype, device="meta")
            blocks = -(-values // _BLOCK)
            self._hold("scales", blocks, torch.uint8)
            self._hold("scales_of_scales", -(-blocks // _NESTED), torch.float32)
            self._hold("codes", 16 + 256 + 1, torch.float32)
        else:
            packed = torch.empty(layer.out_features, layer.in_features, dtype=torch.int8, device="meta")
            self._hold("scales", layer.out_features, torch.float32)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def _hold(self, name: str, values: int, dtype: torch.dtype) -> None:
        self.register_buffer(name, torch.empty(values, dtype=dtype, device="meta"))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``[..., in]`` -> ``[..., out]``, in the precision of activations."""
        result: torch.Tensor = _Product.apply(input.to(self.dtype), self)
        return result

    def unpacked(self, dtype: torch.dtype) -> torch.Tensor:
        """A weight ``[out, in]`` in ``dtype``."""
        scales = _full_scales(self) if self.precision == "nf4" else None
        weight = _unpacked(self)
        del scales
        return weight.to(dtype)


class _Product(torch.autograd.Function):
    """Quantised layers save nothing for the backward, and unpack their weights there."""

    @staticmethod
    def forward(ctx: Any, activations: torch.Tensor, layer: QuantizedStandIn) -> torch.Tensor:
        ctx.layer = layer
        product = _nf4_product if layer.precision == "nf4" else _eight_bit_product
        return kept_product(lambda: product(activations, layer))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.matmul(gradient, ctx.layer.unpacked(ctx.layer.dtype)), None


def _nf4_product(activations: torch.Tensor, layer: QuantizedStandIn) -> torch.Tensor:
    """`MatMul4Bit`."""
    scales = _full_scales(layer)
    scales = scales + 1
    return functional.linear(activations, _unpacked(layer), layer.bias)


def _eight_bit_product(activations: torch.Tensor, layer: QuantizedStandIn) -> torch.Tensor:
    """`row_wise.RowQuantizedLinear` and `eight_bit.FrozenLinear8bit`, which on a card multiplies in 8 bits."""
    if not layer.rounds_inputs:
        return functional.linear(activations, _unpacked(layer), layer.bias)
    rows = activations.reshape(-1, activations.shape[-1])
    # They live until the end, as the local names there do.
    quantised, scales = _empty(rows.to(torch.float16), torch.int8), rows.new_empty(len(rows), dtype=torch.float32)
    products = torch.empty(len(quantised), layer.out_features, dtype=torch.int32, device=scales.device)
    result = _empty(products, torch.float16)
    return result.to(layer.dtype).reshape(*activations.shape[:-1], layer.out_features)


def _unpacked(layer: QuantizedStandIn) -> torch.Tensor:
    weight = torch.empty(layer.out_features, layer.in_features, dtype=layer.dtype, device=layer.weight.device)
    if layer.scales_copies:
        # Where a processor multiplies halves by float32 scales, it makes float32 of what goes in and of what comes out.
        copies = [_empty(weight, torch.float32) for _ in range(2)]
        del copies
    return weight


def _full_scales(layer: QuantizedStandIn) -> torch.Tensor:
    """The scales of 4-bit blocks in full precision, as they are before the weights are."""
    return torch.empty(layer.get_buffer("scales").shape, dtype=torch.float32, device=layer.weight.device)


def _empty(like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(like.shape, dtype=dtype, device=like.device)
