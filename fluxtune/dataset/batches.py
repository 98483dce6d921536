"""The order in which samples are seen: a pure function of seed, epoch and samples.

A run that resumes asks for the micro-batch of its number and gets the one it would have had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fluxtune.dataset.images import Size
from fluxtune.rng import shuffled

Entry: TypeAlias = tuple[int, Size, int]
"""(index of a sample, its (width, height), repeats in an epoch)."""


@dataclass(frozen=True)
class Batch:
    """Samples of one size for one micro-step.

    ``indices`` are the samples; ``draws`` holds a number for each that no other draw of the run has: the path
    of its sigma, noise and caption dropout in ``fluxtune.rng``.
    """

    epoch: int
    indices: tuple[int, ...]
    draws: tuple[int, ...]


class Batches:
    """Micro-batches of an endless run.

    In each epoch every sample is seen ``repeats`` times, shuffled within its size, cut into batches of one
    size (what is left over makes a smaller batch, never dropped), and the batches are shuffled. The run's
    very first batch is the one with the most pixels, so that what does not fit in memory fails at step 1 or
    never.

    Args:
        samples: what to draw from; see ``Entry``.
        batch_size: samples in a full batch.
        seed: the run's seed.
    """

    def __init__(self, samples: Sequence[Entry], batch_size: int, seed: int) -> None:
        if not samples or batch_size < 1:
            raise ValueError(f"batches need samples and a positive size: {len(samples)} samples, size {batch_size}")
        self.batch_size = batch_size
        self.seed = seed
        self._by_size: dict[Size, list[int]] = {}
        for index, size, repeats in samples:
            self._by_size.setdefault(size, []).extend([index] * repeats)
        self._epoch = 0
        self._order = self._shuffled(0)

    @property
    def per_epoch(self) -> int:
        """Micro-batches in an epoch; the same in each."""
        return len(self._order)

    def at(self, micro_step: int) -> Batch:
        """The micro-batch of a number, counted from 0 over the whole run."""
        epoch, position = divmod(micro_step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        indices = self._order[position]
        first = micro_step * self.batch_size
        return Batch(epoch, indices, tuple(range(first, first + len(indices))))

    def _shuffled(self, epoch: int) -> list[tuple[int, ...]]:
        batches: list[tuple[int, ...]] = []
        pixels: list[int] = []
        for (width, height), indices in sorted(self._by_size.items()):
            order = shuffled(indices, self.seed, "samples", epoch, width, height)
            for start in range(0, len(order), self.batch_size):
                batches.append(tuple(order[start : start + self.batch_size]))
                pixels.append(len(batches[-1]) * width * height)
        order = shuffled(list(range(len(batches))), self.seed, "batches", epoch)
        if epoch == 0:
            largest = max(order, key=pixels.__getitem__)
            order.remove(largest)
            order.insert(0, largest)
        return [batches[number] for number in order]
