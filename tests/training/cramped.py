"""A processor with little memory: what another program takes of a card, on real runs."""

from __future__ import annotations

from typing import Any

import torch

from fluxtune.memory.ledger import Ledger


class Cramped(Ledger):
    """Counts what is alive, and raises what CUDA's allocator does where that is more than ``limit`` bytes.

    Attributes:
        limit: None for as much as is wanted.
        most: bytes that were alive at once since it was last set to 0.
    """

    def __init__(self) -> None:
        super().__init__("cpu", as_cuda=False)
        self.limit: int | None = None
        self.most = 0

    @property
    def alive(self) -> int:
        """Bytes that are."""
        return sum(self._alive.values())

    def _take(self, storage: torch.UntypedStorage, category: str) -> None:
        super()._take(storage, category)
        self.most = max(self.most, self.alive)
        if self.limit is not None and self.alive > self.limit:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {storage.nbytes()} bytes.")

    def _note(self) -> Any:
        """No time-line: runs are long."""
