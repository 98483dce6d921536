"""Frozen linear layers of 4 bits through bitsandbytes: NF4 (arXiv 2305.14314) with double quantisation.

bitsandbytes quantises weights in blocks of 64 that run on from row to row; its unpacking for processors begins a new
block with every row, and gives other weights where 64 does not divide a row (0.50.2: wrong by half at a width of 144).
Such layers are ours.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from torch.nn import functional

from fluxtune.memory.frozen import asked_in
from fluxtune.memory.recompute import kept_product

_BLOCK = 64


def empty(layer: nn.Linear, precision: str, dtype: torch.dtype) -> nn.Module:
    """The layer of 4 bits that takes the place of ``layer``, without weight and bias."""
    kind = bnb.nn.Linear4bit if layer.in_features % _BLOCK == 0 else FrozenLinear4bit
    made = kind(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=dtype,
        quant_type="nf4",
        device="meta",
    )
    made.quant_state = None
    # On some processors bitsandbytes repacks weights at the first evaluation into a form without gradients.
    made.support_avx512bf16_for_cpu = False
    return asked_in(dtype, made)


def quantize(made: Any, weight: torch.Tensor) -> None:
    """Gives a layer its weight ``[out, in]``."""
    # The packed bytes are labelled with the precision of the products: T5 casts its activations to the type
    # that a weight claims, and would round them to bytes.
    dtype = made.compute_dtype
    source = weight.to(dtype).contiguous()
    packed = bnb.nn.Params4bit(source, requires_grad=False, quant_type="nf4", quant_storage=dtype, module=made)
    made.weight = packed.to(weight.device)


def packed(made: Any) -> dict[str, torch.Tensor]:
    """What a layer holds its weight in."""
    return {"weight": made.weight.data, **made.weight.quant_state.as_dict(packed=True)}


def unpack(made: Any, packed: Mapping[str, torch.Tensor]) -> None:
    """Gives a layer what another one like it was ``packed`` in."""
    state = dict(packed)
    data = state.pop("weight")
    made.weight = bnb.nn.Params4bit.from_prequantized(data, state, device=str(data.device), module=made)


class FrozenLinear4bit(bnb.nn.Linear4bit):  # type: ignore[misc]
    """`Linear4bit` for rows of any length."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., in]`` -> ``[..., out]``, in the precision of the input."""
        result: torch.Tensor = _Product.apply(x, self)
        return result

    def unpacked(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight ``[out, in]``."""
        in_one_row = copy.copy(self.weight.quant_state)
        in_one_row.shape, in_one_row.dtype = torch.Size([1, self.out_features * self.in_features]), dtype
        weight: torch.Tensor = bnb.functional.dequantize_4bit(self.weight.data, in_one_row)
        return weight.view(self.out_features, self.in_features)


class _Product(torch.autograd.Function):
    """The weight is unpacked for each product, forward and backward, and nothing is saved, as bitsandbytes does."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: FrozenLinear4bit) -> torch.Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        return kept_product(lambda: functional.linear(x, layer.unpacked(x.dtype), layer.bias))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.matmul(gradient.to(ctx.dtype), ctx.layer.unpacked(ctx.dtype)), None
