"""What work would take in memory, before it runs: the work itself, on tensors that have sizes and no content.

They live on torch's meta device, where operations compute shapes alone: the whole training step of FLUX.1-dev takes
seconds so. Autocast does not see them; work that needs it is not simulated right. Knows callables, not models;
`training/simulation.py` hands in the model and the very step that `train` runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional

from fluxtune.memory.ledger import Ledger
from fluxtune.memory.transfers import Transfers

T = TypeVar("T")

DEVICE = "meta"
_FLASH_HEADS = 256
"""The widest attention heads that flash attention takes."""


def simulate(
    build: Callable[[Ledger], T],
    step: Callable[[T, Ledger], None],
    as_cuda: bool,
    capacity: int | None = None,
) -> Ledger:
    """Runs work on the meta device and counts what it would hold.

    Args:
        build: makes what the steps work on, and claims all of it for its categories; nothing else that it makes is
            counted.
        step: the work, with its phases.
        as_cuda: allocate, and compute attention, as on a graphics card, else as on the processor.
        capacity: see ``Ledger``.

    Returns:
        The ledger, with what it counted.
    """
    ledger = Ledger(DEVICE, as_cuda, capacity)
    with as_on_a_card() if as_cuda else _attention(_as_the_processor):
        work = build(ledger)
        with ledger:
            step(work, ledger)
    return ledger


def give_content(module: nn.Module, dtype_of: Callable[[nn.Parameter], torch.dtype]) -> None:
    """Gives a module parameters and buffers on the meta device that are its own, in place; what was tied stays so.

    Args:
        dtype_of: precision that a parameter of fractions is held in.
    """
    made: dict[int, nn.Parameter] = {}
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        if id(parameter) not in made:
            dtype = dtype_of(parameter) if parameter.is_floating_point() else parameter.dtype
            empty = torch.empty(parameter.shape, dtype=dtype, device=DEVICE)
            made[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        path, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(path), leaf, made[id(parameter)])
    for name, buffer in list(module.named_buffers()):
        path, _, leaf = name.rpartition(".")
        module.get_submodule(path).register_buffer(leaf, torch.empty_like(buffer, device=DEVICE))


class SimulatedTransfers(Transfers):
    """Copies to and from system memory, which is on the meta device as all else, and not counted.

    Attributes:
        held: bytes of system memory that are held long.
    """

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(DEVICE, DEVICE)
        self._ledger = ledger
        self.held = 0

    def hold(self, size: int) -> torch.Tensor:
        self.held += size
        return self._elsewhere(super().hold(size))

    def hold_like(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._elsewhere(super().hold_like(tensor))

    def _elsewhere(self, memory: torch.Tensor) -> torch.Tensor:
        self._ledger.exclude(memory)
        return memory


def as_on_a_card() -> AbstractContextManager[None]:
    """Inside, operations on the meta device are those that a graphics card would be given."""
    return _attention(_as_a_card)


@contextmanager
def _attention(kernel: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Inside, attention takes a kernel; on the meta device torch chooses none, but builds the whole matrix."""
    usual = functional.scaled_dot_product_attention

    def attend(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = (kernel if query.is_meta else usual)(query, *args, **kwargs)
        return result

    # torch's own ways to stand in between, such as TorchFunctionMode, do not act where a checkpoint computes again.
    functional.scaled_dot_product_attention = attend  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = usual


def _as_a_card(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Flash attention where it can be, else the memory-efficient one."""
    is_half = query.dtype in (torch.float16, torch.bfloat16)
    if attn_mask is None and is_half and query.shape[-1] <= _FLASH_HEADS:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
    needs_sums = torch.is_grad_enabled() and query.requires_grad
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    return efficient(query, key, value, attn_mask, needs_sums, dropout_p, is_causal, scale=scale)[0]


def _as_the_processor(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return flash(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
