"""What work would take in memory, before it runs: the work itself, on tensors that have sizes and no content.

They live on torch's meta device, where operations compute shapes alone: the whole training step of FLUX.1-dev takes
seconds so. Autocast does not see them; work that needs it is not simulated right. Knows callables, not models;
`training/simulation.py` hands in the model and the very step that `train` runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from fluxtune.memory.kernels import kernels_of_the_device
from fluxtune.memory.ledger import Ledger
from fluxtune.memory.shapes import RememberedShapes
from fluxtune.memory.transfers import Transfers

T = TypeVar("T")

DEVICE = "meta"


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
        as_cuda: allocate, and compute attention and norms, as on a graphics card, else as on the processor.
        capacity: see ``Ledger``.

    Returns:
        The ledger, with what it counted.
    """
    ledger = Ledger(DEVICE, as_cuda, capacity)
    with kernels_of_the_device(as_cuda), RememberedShapes():
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
