from __future__ import annotations

import pytest

from fluxtune.environment.device import capacity_of


@pytest.mark.parametrize(("budget", "bytes_to_be_had"), [(None, None), (1.6, 2**30), (0.1, 0)])
def test_of_a_budget_torch_gets_what_cuda_leaves(budget: float | None, bytes_to_be_had: int | None) -> None:
    had = capacity_of(budget, "cpu")
    assert (had is None) == (bytes_to_be_had is None)
    assert abs((had or 0) - (bytes_to_be_had or 0)) < 2


def test_of_a_card_what_is_free_counts_and_a_little_more_or_less_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for free in (10 * 2**30, 10 * 2**30 - 2**20):
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda free=free: (free, 24 * 2**30))
        seen.append(capacity_of(22.5, "cuda"))
    assert seen[0] == seen[1]
    assert 9.7 * 2**30 < (seen[0] or 0) < 9.9 * 2**30
    assert capacity_of(6, "cuda") == capacity_of(6, "cpu")
