"""Copies on a processor that behave as a card's may at worst."""

from __future__ import annotations

from typing import Any

import torch

from fluxtune.memory.transfers import Transfers


class LateTransfers(Transfers):
    """Copies only when somebody waits; until then there are NaN where the copy will be.

    Who computes without waiting, or with what was given up for another copy, computes NaN.

    Attributes:
        order: the sources of uploads, as they were asked for.
    """

    def __init__(self) -> None:
        super().__init__("cpu")
        self.order: list[torch.Tensor] = []
        self._asked: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._done = 0

    def upload(self, target: torch.Tensor, source: torch.Tensor) -> Any:
        self.order.append(source)
        return super().upload(target, source)

    def wait(self, started: Any) -> None:
        with torch.no_grad():
            for target, source in self._asked[self._done : started]:
                target.copy_(source)
        self._done = max(self._done, started)

    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> int:
        with torch.no_grad():
            target.view(torch.uint8).fill_(0xFF)
        self._asked.append((target, source))
        return len(self._asked)
