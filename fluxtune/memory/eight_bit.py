"""Frozen linear layers of 8 bits through bitsandbytes (LLM.int8(), arXiv 2208.07339) keeping nothing for the backward.

bitsandbytes' own keeps every input until the backward, although frozen weights need none, and keeps it where gradient
checkpointing cannot see it: with all blocks of FLUX.1-dev recomputed at 1024 px that is some 10 GiB (simulated).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn

from fluxtune.memory.frozen import asked_in
from fluxtune.memory.recompute import kept_product


def empty(layer: nn.Linear, precision: str, dtype: torch.dtype) -> nn.Module:
    """The layer of 8 bits that takes the place of ``layer``, without weight and bias."""
    has_bias = layer.bias is not None
    made = FrozenLinear8bit(
        layer.in_features, layer.out_features, bias=has_bias, has_fp16_weights=False, threshold=0.0, device="meta"
    )
    return asked_in(dtype, made)


def quantize(made: Any, weight: torch.Tensor) -> None:
    """Gives a layer its weight ``[out, in]``."""
    # Int8Params quantises only what moves from the CPU to a card, and would hold what is on the card whole.
    rows, scales, _ = bnb.functional.int8_vectorwise_quant(weight.to(torch.float16).contiguous())
    unpack(made, {"weight": rows, "scales": scales})


def packed(made: Any) -> dict[str, torch.Tensor]:
    """What a layer holds its weight in."""
    return {"weight": made.weight.data, "scales": made.weight.SCB}


def unpack(made: Any, packed: Mapping[str, torch.Tensor]) -> None:
    """Gives a layer what another one like it was ``packed`` in."""
    rows, scales = packed["weight"], packed["scales"]
    made.weight = bnb.nn.Int8Params(rows, requires_grad=False, has_fp16_weights=False, CB=rows, SCB=scales)


class FrozenLinear8bit(bnb.nn.Linear8bitLt):  # type: ignore[misc]
    """`Linear8bitLt` whose weights are not trained."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., in]`` -> ``[..., out]``, as `Linear8bitLt` computes it."""
        result: torch.Tensor = _Product.apply(x, self)
        return result

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """The product alone, without a way back."""
        result: torch.Tensor = super().forward(x)
        return result

    def unpacked(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight ``[out, in]`` in ``dtype``."""
        rows, scales = self.state.CB, self.state.SCB
        weight: torch.Tensor = rows.to(dtype, copy=True).mul_(scales.unsqueeze(1).mul(1.0 / 127.0))
        return weight


class _Product(torch.autograd.Function):
    """The same values as bitsandbytes' `MatMul8bitLt`, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: FrozenLinear8bit) -> torch.Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        return kept_product(lambda: layer.product(x))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.matmul(gradient.to(ctx.dtype), ctx.layer.unpacked(ctx.dtype)), None
