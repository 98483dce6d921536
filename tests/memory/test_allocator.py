from __future__ import annotations

import random

import pytest

from fluxtune.memory.allocator import CachingAllocator, rounded

MIB = 2**20


@pytest.mark.parametrize(("asked", "given"), [(0, 512), (1, 512), (512, 512), (513, 1024), (MIB + 1, MIB + 512)])
def test_sizes_are_rounded_up_to_512_bytes(asked: int, given: int) -> None:
    assert rounded(asked) == given


@pytest.mark.parametrize(
    ("asked", "reserved"),
    [(100, 2), (MIB, 2), (MIB + 1, 20), (10 * MIB - 512, 20), (10 * MIB, 10), (11 * MIB, 12)],
)
def test_segments_are_as_large_as_the_allocator_takes_them(asked: int, reserved: int) -> None:
    allocator = CachingAllocator()
    allocator.allocate(asked)
    assert allocator.reserved == reserved * MIB


def test_small_blocks_share_a_segment() -> None:
    allocator = CachingAllocator()
    for _ in range(4):
        allocator.allocate(MIB // 2)
    assert allocator.reserved == 2 * MIB
    allocator.allocate(1)
    assert allocator.reserved == 4 * MIB


def test_what_is_given_back_is_used_again() -> None:
    allocator = CachingAllocator()
    for _ in range(10):
        allocator.release(allocator.allocate(50 * MIB))
    assert allocator.reserved == 50 * MIB


def test_free_neighbours_become_one_block() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.allocate(5 * MIB) for _ in range(4)]
    for index in (0, 2, 1, 3):
        allocator.release(blocks[index])
    allocator.allocate(20 * MIB - 512)
    assert allocator.reserved == 20 * MIB


def test_a_block_is_not_taken_for_something_larger() -> None:
    allocator = CachingAllocator()
    allocator.release(allocator.allocate(30 * MIB))
    allocator.allocate(40 * MIB)
    assert allocator.reserved == 70 * MIB


def test_the_smallest_block_that_is_large_enough_is_taken() -> None:
    allocator = CachingAllocator()
    large, fitting = allocator.allocate(100 * MIB), allocator.allocate(50 * MIB)
    allocator.release(large)
    allocator.release(fitting)
    allocator.allocate(50 * MIB)
    allocator.allocate(100 * MIB)
    assert allocator.reserved == 150 * MIB


def test_when_all_is_given_back_all_of_it_can_be_had_again() -> None:
    draw = random.Random(1)
    allocator = CachingAllocator()
    held = [allocator.allocate(draw.choice((100, 5_000, 3 * MIB, 30 * MIB))) for _ in range(300)]
    draw.shuffle(held)
    for block in held:
        allocator.release(block)
    reserved = allocator.reserved
    held = [allocator.allocate(2 * MIB) for _ in range(allocator.reserved // (2 * MIB) // 2)]
    assert allocator.reserved == reserved


def test_emptying_gives_back_whole_free_segments_and_no_others() -> None:
    allocator = CachingAllocator()
    large, small, other = allocator.allocate(30 * MIB), allocator.allocate(1000), allocator.allocate(1000)
    allocator.release(large)
    allocator.release(small)
    allocator.empty()
    assert allocator.reserved == 2 * MIB
    allocator.release(other)
    allocator.empty()
    assert allocator.reserved == 0


def test_when_the_card_has_no_more_what_is_free_goes_back_first() -> None:
    plain, short = CachingAllocator(), CachingAllocator(capacity=50 * MIB)
    for allocator in (plain, short):
        allocator.release(allocator.allocate(30 * MIB))
        allocator.allocate(40 * MIB)
    assert plain.reserved == 70 * MIB
    assert short.reserved == 40 * MIB
