"""A frozen linear layer of 4 bits whose rows are not whole blocks.

bitsandbytes quantises weights in blocks of 64 that run on from row to row; its unpacking for processors begins a new
block with every row, and gives other weights where 64 does not divide a row (0.50.2: wrong by half at a width of 144).
"""

from __future__ import annotations

import copy
from typing import Any

import bitsandbytes as bnb
import torch
from torch.nn import functional

BLOCK = 64


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
        return functional.linear(x, layer.unpacked(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.matmul(gradient.to(ctx.dtype), ctx.layer.unpacked(ctx.dtype)), None
