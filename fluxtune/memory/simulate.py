"""What work would take in memory, before it runs: the work itself, on tensors that have sizes and no content.

Knows callables, not models; `training/preflight.py` hands in the model and the very step that `train` runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fluxtune.memory.ledger import Ledger

T = TypeVar("T")


def simulate(build: Callable[[Ledger], T], step: Callable[[T, Ledger], None], ledger: Ledger, steps: int = 2) -> Ledger:
    """Runs work on fake tensors and counts what it would hold.

    Args:
        build: makes what the steps work on, and claims all of it for its categories; nothing else that it makes is
            counted. Modules it takes from outside, from the meta device, for ``fake_parameters``.
        step: one step of the work, with its phases.
        steps: more than one, so that what the first leaves behind, such as the optimizer's state, is there.

    Returns:
        The ledger, with what it counted.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        work = build(ledger)
        with ledger:
            for _ in range(steps):
                step(work, ledger)
    return ledger


def fake_parameters(
    module: nn.Module, device: str, dtype_of: Callable[[str, nn.Parameter], torch.dtype]
) -> list[torch.Tensor]:
    """Gives a module on the meta device fake parameters and buffers on ``device``, in place.

    Args:
        dtype_of: (name, parameter) -> precision that a parameter of fractions is held in.

    Returns:
        The new parameters and buffers.
    """
    made: list[torch.Tensor] = []
    for name, parameter in list(module.named_parameters()):
        dtype = dtype_of(name, parameter) if parameter.is_floating_point() else parameter.dtype
        path, _, leaf = name.rpartition(".")
        empty = torch.empty(parameter.shape, dtype=dtype, device=device)
        made.append(nn.Parameter(empty, requires_grad=parameter.requires_grad))
        setattr(module.get_submodule(path), leaf, made[-1])
    for name, buffer in list(module.named_buffers()):
        path, _, leaf = name.rpartition(".")
        made.append(torch.empty_like(buffer, device=device))
        module.get_submodule(path).register_buffer(leaf, made[-1])
    return made
