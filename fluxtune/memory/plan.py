"""Which blocks keep what for the backward, so that a step is fastest within the memory there is: found exactly.

A block keeps more or less of what its forward computed; the backward recomputes the rest, block by block from the last
to the first. While it works on one block, all that earlier blocks keep is held, what later ones kept is free again,
and their gradients are there. So memory is a walk over the blocks, and the largest of its moments has to fit. Within a
kind the later blocks keep more: what they keep is gone before an earlier block needs room to recompute.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """One way to treat a block, with what it takes.

    Attributes:
        held: bytes from its forward until its backward is done.
        working: bytes beside that, at most, while its backward runs.
        operations: what the backward computes again.
    """

    held: int
    working: int
    operations: int


@dataclass(frozen=True)
class Kind:
    """Alike blocks that follow each other.

    Attributes:
        choices: by what is kept, from least to most.
        left: bytes that the backward of a block leaves behind: the gradients of its adapter.
    """

    count: int
    choices: Mapping[str, Choice]
    left: int = 0


Counts = dict[str, int]
"""What is kept -> by how many blocks of a kind: the first of them keep least."""


@dataclass(frozen=True)
class _Suffix:
    """A plan for some of the kinds, up to the last: ``need`` is the highest moment over what was held before them."""

    need: int
    operations: int
    plan: list[Counts]


def fastest(kinds: Sequence[Kind], room: int) -> list[Counts] | None:
    """The plan that recomputes least of those that stay within ``room`` bytes; of equals, the one that needs least.

    Args:
        kinds: in the order of the forward.

    Returns:
        Counts for each kind, or None where nothing fits.
    """
    behind, suffixes = 0, [_Suffix(0, 0, [])]
    for kind in reversed(kinds):
        longer = [
            _Suffix(need, suffix.operations + _operations(kind, counts), [counts, *suffix.plan])
            for counts in _all_counts(list(kind.choices), kind.count)
            for suffix in suffixes
            if (need := _need(kind, counts, suffix.need, behind)) <= room
        ]
        suffixes = _undominated(longer)
        behind += kind.count * kind.left
    return suffixes[-1].plan if suffixes else None


def need_of(kinds: Sequence[Kind], plan: Sequence[Counts]) -> int:
    """Bytes that the blocks take at the highest moment of the backward."""
    need = behind = 0
    for kind, counts in zip(reversed(kinds), reversed(plan), strict=True):
        need = _need(kind, counts, need, behind)
        behind += kind.count * kind.left
    return need


def operations_of(kinds: Sequence[Kind], plan: Sequence[Counts]) -> int:
    """Operations that the backward computes again."""
    return sum(_operations(kind, counts) for kind, counts in zip(kinds, plan, strict=True))


def _need(kind: Kind, counts: Counts, after: int, behind: int) -> int:
    """Of a kind and all that follow, which need ``after`` and leave ``behind`` when they are done."""
    held = peak = 0
    remaining = kind.count
    for kept, number in counts.items():
        choice = kind.choices[kept]
        if not number:
            continue
        first = held + choice.held + (remaining - 1) * kind.left
        last = held + number * choice.held + (remaining - number) * kind.left
        peak = max(peak, max(first, last) + choice.working)
        held += number * choice.held
        remaining -= number
    return max(peak + behind, held + after)


def _operations(kind: Kind, counts: Counts) -> int:
    return sum(number * kind.choices[kept].operations for kept, number in counts.items())


def _all_counts(names: list[str], number: int) -> Iterator[Counts]:
    """Every way to share ``number`` blocks out among what they keep."""
    name, *others = names
    if not others:
        yield {name: number}
        return
    for taken in range(number + 1):
        for rest in _all_counts(others, number - taken):
            yield {name: taken, **rest}


def _undominated(suffixes: list[_Suffix]) -> list[_Suffix]:
    """By growing need and falling operations, without those that are no better than another in both."""
    kept: list[_Suffix] = []
    for each in sorted(suffixes, key=lambda each: (each.need, each.operations)):
        if not kept or each.operations < kept[-1].operations:
            kept.append(each)
    return kept
