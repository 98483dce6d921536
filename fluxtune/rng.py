"""The one source of randomness.

Every draw (noise, sigma, dropout, order) is a pure function of a seed and a path such as ``("noise", step, sample)``,
never of how many draws came before it. So resuming, looking ahead and another number of processes give the same run.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, *path: str | int) -> int:
    """A 63-bit seed for the place ``path`` of a run seeded with ``seed``: the same inputs, the same number."""
    text = "/".join([str(seed), *map(str, path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *path: str | int) -> torch.Generator:
    """A fresh CPU ``torch.Generator`` for one place of a run.

    Noise is always drawn on the CPU and moved, so that CPU and GPU runs see the same numbers.
    """
    import torch

    return torch.Generator().manual_seed(derive(seed, *path))


def uniform(seed: int, *path: str | int) -> float:
    """One number in [0, 1) for one place of a run."""
    return random.Random(derive(seed, *path)).random()


def shuffled(items: list[int], seed: int, *path: str | int) -> list[int]:
    """``items`` in an order that only the seed and the path decide."""
    order = list(items)
    random.Random(derive(seed, *path)).shuffle(order)
    return order
