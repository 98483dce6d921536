"""The planner against every plan there is, on a model small enough to simulate them all."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations_with_replacement, pairwise, product

import pytest
from small_flux import small_flux

from fluxtune.config.schema import Config
from fluxtune.memory.plan import Counts, operations_of
from fluxtune.training.block_costs import block_costs
from fluxtune.training.planning import planned
from fluxtune.training.simulation import Work, foresee_encoders, foresee_training

DEPTHS = (1, 2)
KEPT = ("nothing", "attention", "products", "everything")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Counted byte for byte: segments of the card's allocator would be coarser than what these blocks keep."""
    base = small_flux(tmp_path_factory.mktemp("small") / "base", *DEPTHS, heads=8)
    config = Config.model_validate({"memory": {"recompute": "auto"}})
    return Work(config, base, (512, 512), None, as_cuda=False)


def every_plan() -> list[list[Counts]]:
    """The later blocks of a kind keep no less than the earlier ones."""
    ways = [
        [{name: chosen.count(name) for name in KEPT} for chosen in combinations_with_replacement(KEPT, depth)]
        for depth in DEPTHS
    ]
    return [list(plan) for plan in product(*ways)]


def pinned(work: Work, plan: list[Counts]) -> Work:
    keep = {name: [counts[name] for counts in plan] for name in KEPT[1:]}
    memory = work.config.memory.model_validate({"recompute": "all", "keep": keep})
    return replace(work, config=work.config.model_copy(update={"memory": memory}))


@pytest.mark.slow
def test_the_planner_chooses_what_a_search_through_every_plan_finds(work: Work) -> None:
    costs, encoding = block_costs(work), foresee_encoders(work).reserved
    tried = [(max(encoding, foresee_training(pinned(work, plan)).reserved), plan) for plan in every_plan()]
    assert len(tried) == 40
    peaks = sorted({peak for peak, _ in tried})
    budgets = [(low + high) // 2 for low, high in pairwise(peaks)] + [round(1.05 * peaks[-1])]
    for budget in budgets[:: max(1, len(budgets) // 6)]:
        found = planned(replace(work, capacity=budget))
        assert found.fits
        assert found.again == min(operations_of(costs.kinds, plan) for peak, plan in tried if peak <= budget)


def test_where_no_plan_fits_the_leanest_is_told_with_what_it_lacks(work: Work) -> None:
    found = planned(replace(work, capacity=2**20))
    assert not found.fits
    assert found.lacking == found.forecast.reserved - 2**20
    assert found.memory.offload_activations
    assert found.memory.streamed_blocks == sum(DEPTHS)


def test_settings_that_leave_nothing_open_are_left_as_they_are(work: Work) -> None:
    plan = [{"nothing": 0, "products": 1}, {"nothing": 1, "products": 1}]
    settled = pinned(work, [{name: counts.get(name, 0) for name in KEPT} for counts in plan])
    found = planned(replace(settled, capacity=2**40))
    assert found.memory.recompute == "all"
    assert found.memory.keep.products == [1, 1]
    assert not sum([*found.memory.keep.attention, *found.memory.keep.everything])
