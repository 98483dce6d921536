"""The order of batches: complete, of one size each, and decided by seed and number alone."""

from __future__ import annotations

from collections import Counter

import pytest

from fluxtune.dataset.batches import Batches, Entry

SMALL, MIDDLE, LARGE = (512, 512), (832, 1200), (1024, 1024)


@pytest.fixture
def samples() -> list[Entry]:
    """Seven of one size (one of them three times), four of another, one alone in the largest."""
    small: list[Entry] = [(index, SMALL, 3 if index == 2 else 1) for index in range(7)]
    middle: list[Entry] = [(index, MIDDLE, 1) for index in range(7, 11)]
    return [*small, *middle, (11, LARGE, 1)]


def epoch(batches: Batches, number: int) -> list[tuple[int, ...]]:
    first = number * batches.per_epoch
    return [batches.at(step).indices for step in range(first, first + batches.per_epoch)]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_every_epoch_shows_each_sample_as_often_as_it_repeats(samples: list[Entry], batch_size: int) -> None:
    batches = Batches(samples, batch_size, seed=42)
    for number in range(3):
        seen = Counter(index for batch in epoch(batches, number) for index in batch)
        assert seen == {index: repeats for index, _, repeats in samples}


def test_batches_are_of_one_size_and_what_is_left_over_is_a_smaller_batch(samples: list[Entry]) -> None:
    size_of = {index: size for index, size, _ in samples}
    batches = Batches(samples, 4, seed=42)
    lengths: Counter[tuple[tuple[int, int], int]] = Counter()
    for batch in epoch(batches, 0):
        assert len({size_of[index] for index in batch}) == 1
        lengths[size_of[batch[0]], len(batch)] += 1
    assert lengths == {(SMALL, 4): 2, (SMALL, 1): 1, (MIDDLE, 4): 1, (LARGE, 1): 1}
    assert batches.per_epoch == 5


@pytest.mark.parametrize("seed", range(8))
def test_the_first_batch_of_a_run_is_the_one_that_needs_most_memory(samples: list[Entry], seed: int) -> None:
    assert Batches(samples, 1, seed).at(0).indices == (11,)
    assert set(Batches(samples, 4, seed).at(0).indices) == {7, 8, 9, 10}


def test_later_epochs_start_anywhere(samples: list[Entry]) -> None:
    batches = Batches(samples, 1, seed=42)
    assert len({epoch(batches, number)[0] for number in range(1, 12)}) > 3


def test_a_batch_depends_on_its_number_alone(samples: list[Entry]) -> None:
    straight = Batches(samples, 2, seed=42)
    whole = [straight.at(step) for step in range(40)]
    resumed = Batches(samples, 2, seed=42)
    assert [resumed.at(step) for step in reversed(range(40))] == whole[::-1]
    assert Batches(samples, 2, seed=42).at(33) == whole[33]


def test_the_order_is_the_same_on_every_machine(samples: list[Entry]) -> None:
    assert epoch(Batches(samples, 4, seed=42), 1) == [(11,), (5, 4, 0, 2), (2,), (9, 7, 8, 10), (3, 1, 6, 2)]


def test_seeds_and_epochs_have_their_own_orders(samples: list[Entry]) -> None:
    batches = Batches(samples, 2, seed=42)
    assert epoch(batches, 0)[1:] != epoch(Batches(samples, 2, seed=43), 0)[1:]
    assert epoch(batches, 1) != epoch(batches, 2)


def test_the_order_does_not_depend_on_how_the_samples_are_listed_by_size(samples: list[Entry]) -> None:
    by_size = sorted(samples, key=lambda entry: (-entry[1][0], entry[0]))
    assert epoch(Batches(by_size, 2, seed=42), 1) == epoch(Batches(samples, 2, seed=42), 1)


def test_each_draw_has_a_number_of_its_own(samples: list[Entry]) -> None:
    batches = Batches(samples, 4, seed=42)
    draws = [draw for step in range(50) for draw in batches.at(step).draws]
    assert len(draws) == len(set(draws)) == 10 * sum(repeats for _, _, repeats in samples)
    assert batches.at(7).draws[0] == 28
    assert all(len(batch.draws) == len(batch.indices) for batch in map(batches.at, range(50)))


def test_a_batch_knows_its_epoch(samples: list[Entry]) -> None:
    batches = Batches(samples, 4, seed=42)
    assert [batches.at(step).epoch for step in (0, 4, 5, 9, 10)] == [0, 0, 1, 1, 2]


def test_batches_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="0 samples"):
        Batches([], 1, seed=42)
