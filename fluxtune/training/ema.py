"""A moving average of the adapter, which often makes better pictures than the last step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class MovingAverage:
    """``average = decay * average + (1 - decay) * parameter`` after every step; with decay 0 it is the parameter.

    The decay rises with the steps, ``min(decay, (1 + n) / (10 + n))``, so that a short run is not held back by where
    it began.
    """

    def __init__(self, parameters: dict[str, torch.nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._parameters = parameters
        self.average = {name: parameter.detach().clone() for name, parameter in parameters.items()} if decay else {}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are now."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, average in self.average.items():
            average.lerp_(self._parameters[name], 1.0 - decay)

    @torch.no_grad()
    def reset(self) -> None:
        """Begin again with the parameters as they are now."""
        self.updates = 0
        for name, average in self.average.items():
            average.copy_(self._parameters[name])

    def weights(self) -> dict[str, torch.Tensor]:
        """What is saved: the averages, or the parameters themselves when none are kept."""
        return dict(self.average) if self.average else dict(self._parameters)

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Inside, the model computes with the averages."""
        trained = {name: self._parameters[name].detach().clone() for name in self.average}
        try:
            for name, average in self.average.items():
                self._parameters[name].copy_(average)
            yield
        finally:
            for name, parameter in trained.items():
                self._parameters[name].copy_(parameter)
