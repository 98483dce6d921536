"""How many bytes the parts of a base model take as weights, told from their configs alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fluxtune.config.memory import MemoryConfig
from fluxtune.flux.base import Base, empty_part
from fluxtune.flux.load import is_held_quantized, is_text_quantized
from fluxtune.flux.modulation import is_modulation
from fluxtune.flux.weights import DTYPES
from fluxtune.memory.quantize import QUANTIZATIONS, is_quantized

CHOICES = ("bf16", "int8", "nf4")
"""What ``auto`` chooses from, the most precise first."""
_TEXT_ACTIVATIONS = int(0.3 * 2**30)
"""Bytes that FLUX.1 takes beside its weights, at 512 text tokens (simulated)."""


def choices(dtype: torch.dtype) -> tuple[str, ...]:
    """What ``auto`` chooses from where ``dtype`` is computed in."""
    return ("fp32", *CHOICES[1:]) if dtype == torch.float32 else CHOICES


def text_precision_within(base: Base, memory: MemoryConfig, dtype: torch.dtype, capacity: int | None) -> str:
    """``memory.text_precision``, or in the place of ``auto`` the most precise with which captions are encoded in
    ``capacity`` bytes."""
    if memory.text_precision != "auto":
        return memory.text_precision
    room = None if capacity is None else capacity - _TEXT_ACTIVATIONS
    fitting = (each for each in choices(dtype) if room is None or text_bytes(base, each, dtype) <= room)
    return next(fitting, CHOICES[-1])


def text_bytes(base: Base, precision: str, dtype: torch.dtype) -> int:
    """Of the text encoders' weights; the last of them is quantised where the precision says so."""
    *others, last = (empty_part(base, part) for part in base.text_encoders)
    plain = DTYPES.get(precision, dtype).itemsize
    taken = {path for path, _ in _linears(last) if is_quantized(precision) and is_text_quantized(path, precision)}
    return sum(_bytes(each, plain, precision, set()) for each in others) + _bytes(last, plain, precision, taken)


def transformer_bytes(base: Base, memory: MemoryConfig, dtype: torch.dtype) -> int:
    """Of the transformer's weights on the card."""
    transformer, precision = empty_part(base, "transformer"), memory.base_precision
    taken = {
        path
        for path, _ in _linears(transformer)
        if is_quantized(precision) and is_held_quantized(path, base.family, memory)
    }
    whole = _bytes(transformer, DTYPES.get(precision, dtype).itemsize, precision, taken)
    if memory.modulation == "card":
        return whole
    away = (each for path, each in _linears(transformer) if is_modulation(path, base.family))
    return whole - sum(each.weight.numel() for each in away) * DTYPES.get(precision, dtype).itemsize


def _linears(module: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(path, layer) for path, layer in module.named_modules() if isinstance(layer, nn.Linear)]


def _bytes(module: Any, plain: int, precision: str, quantized: set[str]) -> int:
    total = 0.0
    for name, parameter in module.named_parameters():
        path, _, leaf = name.rpartition(".")
        packed = leaf == "weight" and path in quantized
        total += parameter.numel() * (QUANTIZATIONS[precision].bytes_a_weight if packed else plain)
    return round(total)
