"""What the backward of a frozen linear layer needs: its weight, however it is held."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def weight_of(layer: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """``[out, in]`` in ``dtype``; unpacked where ``layer`` is quantised.

    Args:
        layer: an ``nn.Linear``, bitsandbytes' of 4 bits, or one with a method ``unpacked(dtype)``.
    """
    weight: torch.Tensor
    unpacked = getattr(layer, "unpacked", None)
    if unpacked is not None:
        weight = unpacked(dtype)
        return weight
    held: Any = layer.weight
    state = getattr(held, "quant_state", None)
    if state is not None:
        from bitsandbytes.functional import dequantize_4bit

        held = dequantize_4bit(held.data, state)
    weight = held.to(dtype)
    return weight
