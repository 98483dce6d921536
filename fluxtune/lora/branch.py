"""The layer that computes ``W x + scale * B (A x)`` (arXiv 2106.09685), with W frozen.

For the backward it saves x, as it came, and A x, which is only as wide as the rank. A and B are held in float32 and
multiplied in the precision of x. peft's own layer casts x to float32 first, and under autocast back again: two further
copies of the input of each layer, three times for the one input of q, k and v.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear
from torch import nn
from torch.nn import functional

from fluxtune.memory.frozen import weight_of
from fluxtune.memory.recompute import kept_product


class AdaptedLinear(Linear):  # type: ignore[misc]
    """peft's layer around a frozen linear layer, quantised or not; peft makes it, and turns its adapter off and on."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., in]`` -> ``[..., out]``, in the precision of autocast or else of ``x``."""
        result: torch.Tensor
        if not torch.is_grad_enabled():
            # Rounded as by peft's layer, which makes the pictures of the finished LoRA: previews show those.
            result = super().forward(x)
            return result
        device = x.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        if self.disable_adapters:
            result = self.base_layer(x)
            return result
        (adapter,) = self.active_adapters
        dropout = self.lora_dropout[adapter]
        rate = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
        what = _Constants(self.base_layer, self.scaling[adapter], rate)
        result = _Adapted.apply(x, self.lora_A[adapter].weight, self.lora_B[adapter].weight, what)
        return result


class _Constants(NamedTuple):
    base: nn.Module
    scale: float
    dropout: float


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, what: _Constants) -> torch.Tensor:
        ctx.what, ctx.state = what, _random_state(x.device) if what.dropout else None

        def compute() -> tuple[torch.Tensor, torch.Tensor]:
            narrow = functional.linear(_dropped(x, what.dropout), a.to(x.dtype))
            result = what.base(x)
            _rows(result).addmm_(_rows(narrow), b.to(x.dtype).t(), alpha=what.scale)
            return result, narrow

        result, narrow = kept_product(compute)
        ctx.save_for_backward(x, narrow, a, b)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor, None]:
        (x, narrow, a, b), (base, scale, rate) = ctx.saved_tensors, ctx.what
        outer = _rows(gradient)
        inner = torch.mm(outer, b.to(x.dtype)).mul_(scale)
        with _drawn_from(ctx.state, x.device):
            of_a = torch.mm(inner.t(), _rows(_dropped(x, rate)))
        of_b = torch.mm(outer.t(), _rows(narrow)).mul_(scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = torch.matmul(gradient, weight_of(base, x.dtype))
            if rate:
                with _drawn_from(ctx.state, x.device):
                    of_x += _dropped(torch.mm(inner, a.to(x.dtype)).view(x.shape), rate)
            else:
                _rows(of_x).addmm_(inner, a.to(x.dtype))
        return of_x, of_a.to(a.dtype), of_b.to(b.dtype), None


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """``[..., width]`` as ``[rows, width]``."""
    return tensor.reshape(-1, tensor.shape[-1])


def _dropped(x: torch.Tensor, rate: float) -> torch.Tensor:
    return functional.dropout(x, rate) if rate else x


def _random_state(device: torch.device) -> torch.Tensor | None:
    """What chance draws from on a device; the meta device, where steps are simulated, draws nothing."""
    if device.type == "meta":
        return None
    source: Any = torch if device.type == "cpu" else torch.get_device_module(device)
    state: torch.Tensor = source.get_rng_state() if device.type == "cpu" else source.get_rng_state(device)
    return state


@contextmanager
def _drawn_from(state: torch.Tensor | None, device: torch.device) -> Iterator[None]:
    """Inside, chance draws again what it drew at ``state``; so the mask of a dropout need not be saved."""
    if state is None:
        yield
        return
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        if devices:
            torch.get_device_module(device).set_rng_state(state, device)
        else:
            torch.set_rng_state(state)
        yield
