"""What norms and dropout hold in the simulation of a card, against the kernels of a card."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from fluxtune.memory.kernels import kernels_of_the_device
from fluxtune.memory.ledger import Ledger

SHAPE = (1, 512, 24, 128)
VALUES = 512 * 24 * 128
ROWS = 512 * 24
Work = Callable[[torch.Tensor], torch.Tensor]


def held(work: Work, as_cuda: bool, dtype: torch.dtype = torch.bfloat16) -> int:
    """Bytes that ``work`` leaves beside its input for the backward, and in its result."""
    before = torch.zeros(SHAPE, dtype=dtype, device="meta", requires_grad=True)
    ledger = Ledger("meta", as_cuda=False)
    with kernels_of_the_device(as_cuda), ledger:
        result = work(before)
        after = ledger.moments[-1].bytes
        gradient = torch.empty_like(result)
        result.backward(gradient)
    assert before.grad is not None
    assert (before.grad.shape, before.grad.dtype) == (before.shape, before.dtype)
    return after


def norm(dtype: torch.dtype = torch.bfloat16) -> nn.RMSNorm:
    return nn.RMSNorm(128, eps=1e-6, device="meta", dtype=dtype).requires_grad_(False)


def test_an_rms_norm_of_a_card_keeps_its_input_and_a_number_for_each_row() -> None:
    assert held(norm(), as_cuda=True) == 2 * VALUES + 4 * ROWS


def test_elsewhere_it_keeps_its_input_in_float32_too() -> None:
    assert held(norm(), as_cuda=False) >= (2 + 4) * VALUES


def test_with_a_weight_of_another_precision_a_card_does_as_elsewhere() -> None:
    assert held(norm(torch.float32), as_cuda=True) == held(norm(torch.float32), as_cuda=False)


def test_dropout_of_a_card_keeps_a_byte_for_each_value() -> None:
    assert held(lambda x: functional.dropout(x, 0.1), as_cuda=True) == (2 + 1) * VALUES


@pytest.mark.gpu
@pytest.mark.parametrize("work", [norm(), lambda x: functional.dropout(x, 0.1)], ids=["norm", "dropout"])
def test_a_card_holds_what_is_foretold(work: Work) -> None:
    foretold = held(work, as_cuda=True)
    if isinstance(work, nn.Module):
        work = work.to_empty(device="cuda")
    before = torch.zeros(SHAPE, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    start = torch.cuda.memory_allocated()
    result = work(before)
    assert torch.cuda.memory_allocated() - start == pytest.approx(foretold, rel=0.001)
    result.sum().backward()
