"""What tensors of a LoRA file may be: matrices of finite numbers, and single numbers."""

from __future__ import annotations

import math
from typing import Any

import torch

WEIGHTS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
"""What weights of LoRA files are stored in."""


class UnreadableLora(ValueError):
    """A file's tensors do not make a LoRA; the message says why, without the file."""


def matrix(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A factor as a matrix in float32; those of 1 x 1 convolutions are, too.

    Raises:
        UnreadableLora: it is none, or holds no weights.
    """
    if tensor.dtype not in WEIGHTS or not tensor.numel():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UnreadableLora(f"{name}: a tensor of {kind} {list(tensor.shape)} holds no weights")
    if tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
        tensor = tensor.flatten(1)
    if tensor.ndim != 2:
        raise UnreadableLora(f"{name}: a tensor is {list(tensor.shape)}: a LoRA is made of matrices")
    return tensor.float()


def number(name: str, tensor: torch.Tensor) -> float:
    """A tensor of one number.

    Raises:
        UnreadableLora: it is none.
    """
    if tensor.numel() != 1 or not math.isfinite(float(tensor)):
        raise UnreadableLora(f"{name}: an alpha of shape {list(tensor.shape)}: wanted one finite number")
    return float(tensor)


def above_zero(name: str, value: Any) -> float:
    """A number of the header.

    Raises:
        UnreadableLora: it is none, or not above 0.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and value > 0):
        raise UnreadableLora(f"in its header {name} is {value!r:.80}: wanted a number above 0")
    return float(value)
