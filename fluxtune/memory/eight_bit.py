"""A frozen linear layer of 8 bits that keeps nothing for its backward.

bitsandbytes' own keeps every input until the backward, although frozen weights need none, and keeps it where gradient
checkpointing cannot see it: with all blocks of FLUX.1-dev recomputed at 1024 px that is some 10 GiB (simulated).
"""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import torch

from fluxtune.memory.recompute import kept_product


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
