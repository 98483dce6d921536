from __future__ import annotations

import torch

from fluxtune import rng


def test_the_same_place_of_the_same_run_draws_the_same() -> None:
    assert rng.derive(42, "noise", 7) == rng.derive(42, "noise", 7)
    first, second = (torch.randn(4, generator=rng.generator(42, "noise", 7)) for _ in range(2))
    assert torch.equal(first, second)


def test_every_seed_purpose_and_number_draws_something_else() -> None:
    places = [(seed, purpose, number) for seed in (0, 1, 42) for purpose in ("noise", "sigma") for number in range(50)]
    assert len({rng.derive(*place) for place in places}) == len(places)


def test_draws_do_not_depend_on_the_processs_random_state() -> None:
    torch.manual_seed(1)
    first = torch.randn(4, generator=rng.generator(3, "x"))
    torch.manual_seed(2)
    assert torch.equal(torch.randn(4, generator=rng.generator(3, "x")), first)


def test_the_numbers_are_those_of_earlier_releases() -> None:
    # Other numbers here would make a resumed run go on with other noise than it began with.
    assert rng.derive(42, "noise", 7) == 2275312349736674996
    assert rng.uniform(42, "caption", 7) == 0.35990364035508216
    assert rng.shuffled(list(range(6)), 42, "samples", 0) == [0, 4, 5, 2, 3, 1]


def test_derived_seeds_fit_every_generator() -> None:
    seeds = [rng.derive(2**63 - 1, "noise", number) for number in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**61


def test_uniform_numbers_fill_the_unit_interval() -> None:
    numbers = sorted(rng.uniform(0, "caption", number) for number in range(2000))
    assert numbers[0] >= 0
    assert numbers[-1] < 1
    assert max(abs(number - index / 2000) for index, number in enumerate(numbers)) < 0.05


def test_shuffling_keeps_every_item_and_leaves_the_list_alone() -> None:
    items = list(range(20))
    order = rng.shuffled(items, 0, "samples", 1)
    assert sorted(order) == items == list(range(20))
    assert order != items
    assert order != rng.shuffled(items, 0, "samples", 2)
