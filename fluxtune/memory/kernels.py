"""The kernels that a device would choose, where the meta device builds the same of other operations, which hold more.

Attention: the meta device builds the whole matrix of weights. On a card, besides: RMS norms keep their input and a
number for each row (`_fused_rms_norm` in `native/layer_norm.cpp` and `derivatives.yaml` of PyTorch 2.13), where
elsewhere the input is kept in float32 and each step between is a tensor; dropout keeps one byte a value
(`native_dropout`). Layer norms keep the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.nn import functional

_FLASH_HEADS = 256
"""The widest attention heads that flash attention takes."""


@contextmanager
def kernels_of_the_device(as_cuda: bool) -> Iterator[None]:
    """Inside, what is computed on the meta device takes the kernels of a graphics card, or else of the processor."""
    kernels: dict[str, Callable[..., torch.Tensor | None]] = {
        "scaled_dot_product_attention": partial(_attention, as_cuda)
    }
    if as_cuda:
        kernels |= {"rms_norm": _rms_norm, "dropout": _dropout}
    usual = {name: getattr(functional, name) for name in kernels}
    # torch's own ways to stand in between, such as TorchFunctionMode, do not act where a checkpoint computes again.
    for name, kernel in kernels.items():
        setattr(functional, name, partial(_on_meta, kernel, usual[name]))
    try:
        yield
    finally:
        for name, function in usual.items():
            setattr(functional, name, function)


def _on_meta(
    kernel: Callable[..., torch.Tensor | None], usual: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
) -> torch.Tensor:
    """What ``kernel`` makes of tensors without content, if it takes them."""
    input, *_ = (*args, *kwargs.values())
    result = kernel(*args, **kwargs) if input.is_meta else None
    return usual(*args, **kwargs) if result is None else result


def _attention(
    as_cuda: bool,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Flash attention where it can be; on a card, which takes it for 16 bits without a mask, else the memory-efficient
    one."""
    aten = torch.ops.aten
    if not as_cuda:
        flash = aten._scaled_dot_product_flash_attention_for_cpu
        return flash(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    is_half = query.dtype in (torch.float16, torch.bfloat16)
    if attn_mask is None and is_half and query.shape[-1] <= _FLASH_HEADS:
        flash = aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
    needs_sums = torch.is_grad_enabled() and query.requires_grad
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    efficient = aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, attn_mask, needs_sums, dropout_p, is_causal, scale=scale)[0]


def _rms_norm(
    input: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    eps: float | None = None,
) -> torch.Tensor | None:
    """The fused kernel, which takes a weight of the input's precision only."""
    if weight is not None and weight.dtype != input.dtype:
        return None
    result: torch.Tensor = _FusedRmsNorm.apply(input, weight, len(normalized_shape))
    return result


class _FusedRmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: torch.Tensor | None, dimensions: int) -> torch.Tensor:
        rows = (*input.shape[:-dimensions], *[1] * dimensions)
        ctx.save_for_backward(input, weight, input.new_empty(rows, dtype=torch.float32))
        return torch.empty_like(input, memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient = gradient.contiguous()
        needed = zip(ctx.saved_tensors[:2], ctx.needs_input_grad[:2], strict=True)
        return *[torch.empty_like(each) if wanted else None for each, wanted in needed], None


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor | None:
    """The fused kernel, unless there is nothing to drop."""
    return torch.native_dropout(input, p, training)[0] if training and 0 < p < 1 and not inplace else None
