"""Pictures that are there twice: the same bytes, or nearly the same picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fluxtune.dataset.findings import found
from fluxtune.dataset.folder import Item
from fluxtune.dataset.survey import Look
from fluxtune.events import Finding

NEAR = 10
"""Bits of 64 in which the fingerprints of nearly the same picture differ at most."""

_ROWS = 512
"""Fingerprints that are compared with all others at once: bounds the memory for large data sets."""


def check_likeness(pictures: Sequence[tuple[Item, Look]]) -> Iterator[Finding]:
    """Each picture that repeats an earlier one, with that one's name."""
    first: dict[str, int] = {}
    copies: set[int] = set()
    for index, (item, look) in enumerate(pictures):
        earlier = first.setdefault(look.digest, index)
        if earlier != index:
            copies.add(index)
            message = f"the same file as {pictures[earlier][0].name}"
            yield found("duplicate", message, where=str(item.path), picture=item.name)
    # A picture of one brightness is like any other such: that is told of it already.
    distinct = [i for i, (_, look) in enumerate(pictures) if i not in copies and not look.blank]
    for index, earlier, distance in _near([pictures[i][1].fingerprints for i in distinct]):
        item, other = pictures[distinct[index]][0], pictures[distinct[earlier]][0]
        message = f"much like {other.name} (fingerprints differ in {distance} of 64 bits)"
        yield found("near-duplicate", message, where=str(item.path), picture=item.name)


def _near(fingerprints: list[tuple[int, ...]]) -> Iterator[tuple[int, int, int]]:
    """(index, the earlier index that is most like it, bits between them) of each that is near an earlier one.

    The whole of either is compared with the whole and the parts of the other.
    """
    if not fingerprints:
        return
    values = np.array(fingerprints, dtype=np.uint64)
    wholes = values[:, 0]
    for start in range(0, len(values), _ROWS):
        rows = values[start : start + _ROWS]
        earlier = start + len(rows)
        distances = np.full((len(rows), earlier), 64, dtype=np.uint8)
        for part in range(values.shape[1]):
            for one, other in ((rows[:, part], wholes), (rows[:, 0], values[:, part])):
                np.minimum(distances, np.bitwise_count(one[:, None] ^ other[None, :earlier]), out=distances)
        distances[np.arange(earlier)[None] >= np.arange(start, earlier)[:, None]] = 64
        for row, nearest in enumerate(distances.argmin(axis=1)):
            if distances[row, nearest] <= NEAR:
                yield start + row, int(nearest), int(distances[row, nearest])
