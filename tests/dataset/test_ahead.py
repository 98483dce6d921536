"""Work ahead of whoever takes the results: in order, bounded, and over when nobody takes them any more."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest

from fluxtune.dataset.ahead import ahead


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_results_come_in_order_whatever_the_number_of_threads(threads: int) -> None:
    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item**2

    assert list(ahead(work, range(20), threads, threads + 2)) == [item**2 for item in range(20)]


def test_no_more_is_begun_than_may_wait() -> None:
    begun: list[int] = []
    with closing(ahead(begun.append, range(1000), threads=2, waiting=5)) as results:
        for taken, _ in zip(range(1, 31), results, strict=False):
            time.sleep(0.001)
            assert len(begun) <= taken + 4


def test_the_next_results_are_made_while_one_is_used() -> None:
    third = threading.Event()
    works = {0: lambda: None, 1: lambda: None, 2: third.set}
    with closing(ahead(lambda item: works[item](), range(3), threads=1, waiting=3)) as results:
        next(results)
        assert third.wait(timeout=120)


def test_an_error_comes_at_its_place_and_the_threads_end() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ValueError("the fourth")
        return item

    taken = []
    with pytest.raises(ValueError, match="the fourth"), closing(ahead(work, range(100), 2, 4)) as results:
        for result in results:
            taken.append(result)
    assert taken == [0, 1, 2]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_closing_leaves_what_was_not_begun() -> None:
    begun: list[int] = []
    with pytest.raises(KeyboardInterrupt), closing(ahead(begun.append, range(1000), 2, 4)) as results:
        next(results)
        raise KeyboardInterrupt
    assert len(begun) <= 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
