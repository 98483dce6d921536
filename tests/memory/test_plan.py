from __future__ import annotations

import random
from itertools import product

import pytest

from fluxtune.memory.plan import Choice, Counts, Kind, fastest, need_of, operations_of

CHOICES = ("nothing", "attention", "products", "everything")


def kinds(seed: int, counts: tuple[int, ...]) -> list[Kind]:
    """Blocks whose choices hold more and recompute less, as in any model, with random sizes."""
    chance = random.Random(seed)
    made = []
    for count in counts:
        held = sorted(chance.sample(range(10, 400), len(CHOICES)))
        operations = sorted(chance.sample(range(0, 900), len(CHOICES)), reverse=True)
        choices = {
            name: Choice(held[index], chance.randint(20, 500), operations[index]) for index, name in enumerate(CHOICES)
        }
        made.append(Kind(count, choices, left=chance.randint(0, 30)))
    return made


def walked(made: list[Kind], plan: tuple[tuple[str, ...], ...]) -> int:
    """The highest moment of the backward, block by block."""
    blocks = [(kind, kind.choices[kept]) for kind, each in zip(made, plan, strict=True) for kept in each]
    return max(
        sum(choice.held for _, choice in blocks[: index + 1])
        + blocks[index][1].working
        + sum(kind.left for kind, _ in blocks[index + 1 :])
        for index in range(len(blocks))
    )


def every_plan(made: list[Kind]) -> list[tuple[tuple[str, ...], ...]]:
    """The later blocks of a kind keep no less than the earlier ones."""
    ways = [
        [each for each in product(CHOICES, repeat=kind.count) if list(each) == sorted(each, key=CHOICES.index)]
        for kind in made
    ]
    return list(product(*ways))


def counted(plan: tuple[tuple[str, ...], ...]) -> list[Counts]:
    return [{name: each.count(name) for name in CHOICES} for each in plan]


@pytest.mark.parametrize("seed", range(20))
def test_what_blocks_need_is_the_highest_moment_of_the_walk_over_them(seed: int) -> None:
    made = kinds(seed, (2, 3, 1))
    for plan in random.Random(seed).sample(every_plan(made), 40):
        assert need_of(made, counted(plan)) == walked(made, plan)


@pytest.mark.parametrize("seed", range(12))
def test_the_plan_is_the_best_of_all_that_fit(seed: int) -> None:
    made = kinds(seed, (2, 4))
    plans = every_plan(made)
    needs = {plan: walked(made, plan) for plan in plans}
    for share in (0.0, 0.2, 0.5, 0.8, 1.0):
        room = round(min(needs.values()) + share * (max(needs.values()) - min(needs.values())))
        found = fastest(made, room)
        assert found is not None
        best = min(operations_of(made, counted(plan)) for plan in plans if needs[plan] <= room)
        assert operations_of(made, found) == best
        assert need_of(made, found) <= room


def test_no_plan_is_made_where_none_fits() -> None:
    made = kinds(1, (2, 2))
    least = min(walked(made, plan) for plan in every_plan(made))
    assert fastest(made, least) is not None
    assert fastest(made, least - 1) is None


def test_a_model_as_deep_as_flux_is_planned_at_once() -> None:
    made = kinds(3, (19, 38))
    plan = fastest(made, 8000)
    assert plan is not None
    assert [sum(counts.values()) for counts in plan] == [19, 38]


def test_more_room_never_recomputes_more() -> None:
    made = kinds(5, (6, 9))
    costs = [operations_of(made, plan) for room in range(500, 6000, 250) if (plan := fastest(made, room)) is not None]
    assert len(costs) > 5
    assert costs == sorted(costs, reverse=True)
