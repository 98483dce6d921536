"""Operations on the meta device that are known give what torch would give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from fluxtune.memory.ledger import Ledger
from fluxtune.memory.shapes import RememberedShapes

aten = torch.ops.aten


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


OPERATIONS: dict[str, Callable[[], Any]] = {
    "broadcast": lambda: meta(3, 1, 4) + meta(5, 1),
    "promoted by a tensor": lambda: meta(3, dtype=torch.bfloat16) * meta(2, 3),
    "of whole numbers by a whole one": lambda: meta(3, dtype=torch.int64) * 1,
    "of whole numbers by a fraction": lambda: meta(3, dtype=torch.int64) * 1.0,
    "turned": lambda: meta(4, 6).t() * 2,
    "turned, like": lambda: torch.empty_like(meta(4, 6).t()),
    "turned, in a row": lambda: torch.empty_like(meta(4, 6).t(), memory_format=torch.contiguous_format),
    "product": lambda: torch.addmm(meta(4), meta(2, 3), meta(3, 4)),
    "norm": lambda: functional.layer_norm(meta(2, 3, 8), [8]),
    "norm with its sums": lambda: aten.native_layer_norm(meta(2, 3, 8), [8], None, None, 1e-6),
    "stacked": lambda: torch.stack([meta(2, 3), meta(2, 3)], -1),
    "drawn": lambda: torch.native_dropout(meta(4, 4, dtype=torch.bfloat16), 0.5, True),
    "in another precision": lambda: meta(3).to(torch.bfloat16),
}


def facts(returned: Any) -> list[Any]:
    tensors = [returned] if isinstance(returned, torch.Tensor) else returned
    return [(each.shape, each.stride(), each.dtype, each.untyped_storage().nbytes()) for each in tensors]


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxtune.memory.shapes._known", {})


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_known_has_the_shape_strides_and_precision_that_torch_gives(name: str) -> None:
    operation = OPERATIONS[name]
    with RememberedShapes():
        first, second = operation(), operation()
    assert facts(first) == facts(second) == facts(operation())
    assert type(first) is type(second)


def test_torch_works_it_out_once() -> None:
    class Asked(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            asked.append(func)
            return func(*args, **(kwargs or {}))

    asked: list[Any] = []
    x = meta(2, 3)
    with Asked(), RememberedShapes():
        for _ in range(3):
            functional.gelu(x).mul_(2)
    assert [asked.count(each) for each in (aten.gelu.default, aten.mul_.Tensor)] == [1, 1]


def test_kinds_of_arguments_are_told_apart() -> None:
    with RememberedShapes():
        for operation in OPERATIONS.values():
            operation()
        found = {name: facts(operation()) for name, operation in OPERATIONS.items()}
    assert found == {name: facts(operation()) for name, operation in OPERATIONS.items()}


def test_each_result_is_memory_of_its_own_and_views_stay_views() -> None:
    x = meta(2, 3)
    with RememberedShapes():
        sums = [x + 1, x + 1, x + 1]
        views = [aten._unsafe_view(x, [3, 2]) for _ in range(2)]
    assert len({each.untyped_storage()._cdata for each in [x, *sums]}) == 4
    assert {each.untyped_storage()._cdata for each in views} == {x.untyped_storage()._cdata}


def test_in_place_the_argument_comes_back_and_a_wrong_shape_is_an_error() -> None:
    x = meta(2, 4)
    with RememberedShapes():
        for _ in range(2):
            assert x.addmm_(meta(2, 3), meta(3, 4)) is x
            assert x.mul_(2) is x
            with pytest.raises(RuntimeError):
                x.addmm_(meta(2, 3), meta(2, 4))
            with pytest.raises(RuntimeError):
                x + meta(3, 4)


def test_what_has_content_is_computed() -> None:
    step = torch.zeros(())
    with RememberedShapes():
        for _ in range(3):
            step.add_(1)
        sums = [torch.full((2,), float(value)) + 1 for value in range(2)]
    assert step == 3
    assert [each.tolist() for each in sums] == [[1, 1], [2, 2]]


def test_a_step_counts_the_same_at_each_moment() -> None:
    def moments(remembers: bool) -> list[Any]:
        ledger = Ledger("meta")
        model = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 8)).to("meta")
        optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
        if not remembers:
            with ledger:
                _step(model, optimizer)
        else:
            with RememberedShapes(), ledger:
                _step(model, optimizer)
        return ledger.moments

    assert moments(True) == moments(True) == moments(False)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(meta(4, 8)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
