"""What blocks keep adds up: a few of each kind tell what a model of another depth takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fluxtune.config.schema import Config
from fluxtune.flux.known import known_base
from fluxtune.training.block_costs import BlockCosts, block_costs, costs_from
from fluxtune.training.simulation import STEP, Work, foresee_training

DEPTHS = (4, 6)
MIXTURES = [
    {},
    {"attention": [4, 6]},
    {"products": [0, 5]},
    {"attention": [2, 1], "products": [1, 3], "everything": [1, 2]},
]


@pytest.fixture(scope="module")
def work() -> Work:
    base = known_base("black-forest-labs/FLUX.1-dev")
    assert base is not None
    config = Config.model_validate({"memory": {"base_precision": "int8", "modulation": "ahead"}})
    return Work(config, base, (512, 512), None, depths=DEPTHS)


@pytest.fixture(scope="module")
def costs(work: Work) -> BlockCosts:
    return block_costs(work)


def keeping(work: Work, keep: dict[str, list[int]]) -> Work:
    memory = work.config.memory.model_validate({**work.config.memory.model_dump(), "keep": keep})
    return replace(work, config=work.config.model_copy(update={"memory": memory}))


@pytest.mark.parametrize("keep", MIXTURES, ids=str)
def test_the_peak_of_a_deeper_model_is_foretold_within_half_a_percent(
    work: Work, costs: BlockCosts, keep: dict[str, list[int]]
) -> None:
    plan = []
    for kind, depth in enumerate(DEPTHS):
        kept: dict[str, Any] = {name: keep.get(name, [0, 0])[kind] for name in ("attention", "products", "everything")}
        plan.append({"nothing": depth - sum(kept.values()), **kept})
    simulated = max(each.bytes for each in foresee_training(keeping(work, keep)).phases if each.phase in STEP)
    # Where the last block keeps everything, the end of the forward is foretold a little too high.
    assert 0.995 * simulated <= costs.peak(plan) <= 1.01 * simulated


def test_what_keeps_more_holds_more_and_recomputes_less(costs: BlockCosts) -> None:
    for kind in costs.kinds:
        choices = list(kind.choices.values())
        assert [each.held for each in choices] == sorted({each.held for each in choices})
        assert [each.operations for each in choices] == sorted({each.operations for each in choices}, reverse=True)
        assert choices[-1].operations == 0


def test_costs_are_kept_as_json_and_read_again(costs: BlockCosts) -> None:
    assert costs_from(costs.as_record()) == costs
