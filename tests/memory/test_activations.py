"""Offloaded inputs of blocks against inputs that stay: every gradient to the bit, and less on the device."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from late_transfers import LateTransfers
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fluxtune.memory.activations import ActivationOffload
from fluxtune.memory.forecast import phase_peaks
from fluxtune.memory.ledger import Ledger
from fluxtune.memory.offload import stream_blocks
from fluxtune.memory.simulate import DEVICE, SimulatedTransfers, simulate

WIDTH, TOKENS, DEPTH = 32, 96, 6
INPUT_BYTES = TOKENS * WIDTH * 4


class Block(nn.Module):
    """A residual block on two sequences that meet in it, and a small condition, as FLUX's have."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(WIDTH, 4 * WIDTH).requires_grad_(False)
        self.out = nn.Linear(4 * WIDTH, WIDTH)

    def forward(
        self, picture: torch.Tensor, text: torch.Tensor, condition: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        joined = torch.cat([text, picture], dim=1)
        joined = joined + self.out(functional.gelu(self.into(joined)) * condition)
        return joined[:, text.shape[1] :], joined[:, : text.shape[1]]


class Model(nn.Module):
    def __init__(self, depth: int = DEPTH) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, picture: torch.Tensor, text: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            picture, text = block(picture, text, condition)
        return picture


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(batch, TOKENS, WIDTH), torch.randn(batch, TOKENS, WIDTH), torch.randn(batch, 1, 4 * WIDTH)


def gradients(model: Model) -> list[torch.Tensor]:
    found = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            found.append(parameter.grad)
            parameter.grad = None
    return found


def learned(model: Model) -> list[torch.Tensor]:
    model(*inputs()).square().mean().backward()
    return gradients(model)


def recomputed(model: Model, around: Callable[[Any], Any] = lambda checkpointed: checkpointed) -> Model:
    """Every block under a checkpoint of its own, and ``around`` outside of it."""
    for block in model.blocks:
        block.forward = around(partial(checkpoint, block.forward, use_reentrant=False))
    return model


def offload(ahead: int = 2, smallest: int = INPUT_BYTES) -> tuple[ActivationOffload, LateTransfers]:
    transfers = LateTransfers()
    offloading = ActivationOffload("cpu", ahead, transfers)
    offloading.smallest = smallest
    return offloading, transfers


@pytest.mark.parametrize("ahead", [0, 1, 2, 9])
def test_every_gradient_is_that_of_the_plain_model_to_the_bit(ahead: int) -> None:
    expected = learned(Model())
    offloading, transfers = offload(ahead)
    model = recomputed(Model(), offloading.around)
    for _ in range(2):
        assert all(map(torch.equal, learned(model), expected))
    assert transfers.downloaded > 0


def test_what_is_offloaded_are_the_inputs_of_blocks_once_each_way() -> None:
    offloading, transfers = offload()
    learned(recomputed(Model(), offloading.around))
    assert transfers.downloaded == transfers.uploaded == DEPTH * 2 * 2 * INPUT_BYTES


def test_small_tensors_stay() -> None:
    offloading, transfers = offload(smallest=2 * INPUT_BYTES + 1)
    learned(recomputed(Model(), offloading.around))
    assert transfers.downloaded == 0


def test_the_inputs_of_the_next_blocks_are_on_their_way_when_a_block_is_computed_again() -> None:
    offloading, transfers = offload(ahead=2)
    model = recomputed(Model(), offloading.around)
    asked: list[int] = []
    loss = model(*inputs()).square().mean()
    for block in model.blocks:
        block.into.register_forward_hook(lambda *_: asked.append(len(transfers.order) // 2))
    loss.backward()
    assert asked == [3, 4, 5, 6, 6, 6]


def test_two_forwards_may_come_before_their_backwards() -> None:
    def crossed(model: Model) -> list[torch.Tensor]:
        picture, text, condition = inputs()
        first = model(picture, text, condition).square().mean()
        with torch.no_grad():
            model(picture, text, -condition)
        second = model(text, picture, condition).square().mean()
        first.backward()
        second.backward()
        return gradients(model)

    expected = crossed(Model())
    offloading, _ = offload()
    assert all(map(torch.equal, crossed(recomputed(Model(), offloading.around)), expected))


def test_it_goes_together_with_streamed_blocks() -> None:
    expected = learned(Model())
    offloading, _ = offload()
    model = Model()
    stream_blocks(list(model.blocks), "cpu", 1, LateTransfers())
    recomputed(model, offloading.around)
    for _ in range(2):
        assert all(map(torch.equal, learned(model), expected))


def test_nothing_is_kept_after_the_backward() -> None:
    offloading, _ = offload()
    learned(recomputed(Model(), offloading.around))
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each).__name__ == "_Parcel"]


def test_the_device_holds_the_inputs_of_as_many_blocks_whatever_the_depth() -> None:
    def peak(depth: int, offloads: bool) -> int:
        def build(ledger: Ledger) -> Any:
            offloading = ActivationOffload(DEVICE, 1, SimulatedTransfers(ledger))
            offloading.smallest = INPUT_BYTES
            model = recomputed(Model(depth).to(DEVICE), *([offloading.around] if offloads else []))
            for parameter in model.parameters():
                ledger.claim(parameter, "weights")
            return model

        def step(model: Any, ledger: Ledger) -> None:
            loss = model(*(each.to(DEVICE) for each in inputs())).square().mean()
            with ledger.phase("backward"):
                torch.autograd.grad(loss, [model.blocks[0].out.weight])

        peaks = {each.phase: each for each in phase_peaks(simulate(build, step, as_cuda=False).moments)}
        return peaks["backward"].bytes - peaks["backward"].alive["weights"]

    assert peak(12, offloads=True) == peak(6, offloads=True)
    assert peak(12, offloads=False) - peak(6, offloads=False) == 6 * 2 * 2 * INPUT_BYTES
