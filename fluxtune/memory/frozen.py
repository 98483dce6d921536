"""What frozen linear layers have in common, however they hold their weights."""

from __future__ import annotations

from functools import partial
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


def asked_in(dtype: torch.dtype, layer: nn.Module) -> nn.Module:
    """``layer``, which takes its input in ``dtype`` from now on: under autocast, norms hand on float32, and
    bitsandbytes answers in the precision that it is asked in: all activations would be float32 from there on."""
    layer.register_forward_pre_hook(partial(_cast_input, dtype))
    return layer


def _cast_input(dtype: torch.dtype, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (inputs[0].to(dtype), *inputs[1:])
