"""How much memory CUDA's caching allocator takes from the card for what is alive: a model of it, of sizes alone.

After `c10/cuda/CUDACachingAllocator.cpp` of PyTorch 2.x: what is asked for is rounded up to 512 bytes; up to 1 MiB it
comes out of segments of 2 MiB, up to 10 MiB out of segments of 20 MiB, above out of its own, rounded up to 2 MiB. The
smallest free block that is large enough is taken and split, unless little would be left; freed blocks join their free
neighbours, and stay reserved. When the card has no more, segments that are free as a whole go back to it first.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from itertools import count

BLOCK = 512
"""Bytes: sizes are whole numbers of these."""
_SMALL = 2**20
_SMALL_SEGMENT = 2 * 2**20
_LARGE_SEGMENT = 20 * 2**20
_OWN_SEGMENT = 10 * 2**20
_ROUND_LARGE = 2 * 2**20


def rounded(size: int) -> int:
    """Bytes that count as allocated for ``size`` bytes; at least one block."""
    return max(BLOCK, -(-size // BLOCK) * BLOCK)


@dataclass(eq=False)
class _Block:
    """A stretch of a segment; its neighbours in the segment are `before` and `behind`."""

    size: int
    number: int
    small: bool
    free: bool = True
    before: _Block | None = None
    behind: _Block | None = None

    @property
    def rank(self) -> tuple[int, int]:
        return self.size, self.number


class CachingAllocator:
    """The state of the allocator; `reserved` is what it has taken from the card, in bytes.

    Args:
        capacity: bytes that the card has; what is asked for beyond that is given all the same, and shows in `reserved`.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.reserved = 0
        self._capacity = capacity
        self._free: dict[bool, list[_Block]] = {True: [], False: []}
        self._numbers = count()

    def allocate(self, size: int) -> _Block:
        """A block for ``size`` bytes, to be given back to ``release``."""
        size = rounded(size)
        small = size <= _SMALL
        free = self._free[small]
        place = bisect_left(free, (size, -1), key=lambda block: block.rank)
        block = free.pop(place) if place < len(free) else self._segment(size, small)
        block.free = False
        self._split(block, size)
        return block

    def release(self, block: _Block) -> None:
        """Makes a block free again, together with what is free beside it."""
        block.free = True
        for neighbour in (block.before, block.behind):
            if neighbour is not None and neighbour.free:
                self._free[block.small].remove(neighbour)
                block = _joined(block, neighbour)
        insort(self._free[block.small], block, key=lambda each: each.rank)

    def empty(self) -> None:
        """Gives the segments that are free as a whole back to the card."""
        for small, blocks in self._free.items():
            whole = [block for block in blocks if block.before is None and block.behind is None]
            self.reserved -= sum(block.size for block in whole)
            self._free[small] = [block for block in blocks if block not in whole]

    def _segment(self, size: int, small: bool) -> _Block:
        if small:
            taken = _SMALL_SEGMENT
        elif size < _OWN_SEGMENT:
            taken = _LARGE_SEGMENT
        else:
            taken = -(-size // _ROUND_LARGE) * _ROUND_LARGE
        if self._capacity is not None and self.reserved + taken > self._capacity:
            self.empty()
        self.reserved += taken
        return _Block(taken, next(self._numbers), small)

    def _split(self, block: _Block, size: int) -> None:
        """Leaves behind what a block is too large by, if that is worth it."""
        left = block.size - size
        if left < BLOCK if block.small else left <= _SMALL:
            return
        rest = _Block(left, next(self._numbers), block.small, before=block, behind=block.behind)
        if block.behind is not None:
            block.behind.before = rest
        block.size, block.behind = size, rest
        insort(self._free[block.small], rest, key=lambda each: each.rank)


def _joined(one: _Block, other: _Block) -> _Block:
    """Two neighbours as one, in the place of the first of them."""
    first, second = (one, other) if one.behind is other else (other, one)
    first.size += second.size
    first.behind = second.behind
    if second.behind is not None:
        second.behind.before = first
    first.free = True
    return first
