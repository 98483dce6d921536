from __future__ import annotations

import torch

from fluxtune.memory.forecast import phase_peaks
from fluxtune.memory.ledger import TEMPORARIES, Ledger

MIB = 2**20


def square(side: int = 512) -> torch.Tensor:
    """1 MiB of float32."""
    return torch.zeros(side, side)


def test_what_is_alive_is_counted_until_it_is_gone() -> None:
    with Ledger("cpu") as ledger:
        first = square()
        second = square() + 1
        del first
        third = second * 2
    assert ledger.peak.bytes == 3 * MIB  # zeros, zeros that one is added to, and their sum
    assert ledger.moments[-1].bytes == 2 * MIB
    assert third.shape == (512, 512)


def test_views_and_operations_in_place_hold_nothing_new() -> None:
    with Ledger("cpu") as ledger:
        whole = square()
        whole[:100].t().add_(1)
    assert ledger.peak.bytes == MIB


def test_what_autograd_saves_is_alive_until_the_backward() -> None:
    weight = square().requires_grad_()
    with Ledger("cpu") as ledger:
        loss = ((weight * 2) ** 2).sum()
        kept = loss + 1
        forward = ledger.moments[-1].bytes
        loss.backward()
        del loss, kept
        square(1)
    assert MIB < forward < 2 * MIB
    assert ledger.peak.bytes > 2 * MIB
    assert weight.grad is not None
    assert MIB < ledger.moments[-1].bytes < 2 * MIB


def test_bytes_are_told_apart_by_who_claims_them() -> None:
    weight = square()
    with Ledger("cpu") as ledger:
        ledger.claim(weight, "weights")
        made = weight + 1
        ledger.claim_rest("activations")
        other = made + 1
    assert ledger.moments[-1].alive == {"weights": MIB, "activations": MIB, TEMPORARIES: MIB}
    assert other is not made


def test_each_phase_has_its_peak() -> None:
    with Ledger("cpu") as ledger:
        with ledger.phase("one"):
            held = [square(), square()]
        held.pop()
        with ledger.phase("two"):
            held.append(square() + 1)
    assert [(peak.phase, peak.bytes) for peak in phase_peaks(ledger.moments)] == [("one", 2 * MIB), ("two", 3 * MIB)]


def test_only_what_lives_on_the_device_is_counted() -> None:
    with Ledger("cuda") as ledger:
        square()
        ledger.claim(square(), "weights")
    assert ledger.moments == []
    assert ledger.reserved == 0


def test_small_tensors_count_as_the_blocks_that_hold_them() -> None:
    with Ledger("cpu") as in_blocks, Ledger("cpu", as_cuda=False) as in_bytes:
        held = [torch.zeros(1) for _ in range(3)]
    assert in_blocks.peak.bytes == 3 * 512
    assert in_bytes.peak.bytes == 3 * 4
    assert (in_blocks.reserved, in_bytes.reserved) == (2 * MIB, 0)
    assert len(held) == 3
