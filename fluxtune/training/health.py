"""Losses, gradients and weights that are not finite: a step is skipped, a run goes back and learns slower, or stops.

One bad picture or one spike costs a step. Several steps in a row mean that the weights lead nowhere, and what was saved
before is better. What is counted is part of the saved state, so that a resumed run does what the unbroken one does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import PurePath
from typing import NoReturn

from fluxtune.config.training import TrainingConfig
from fluxtune.errors import DivergedError, some_names
from fluxtune.events import Sink, Warning
from fluxtune.training.checkpoint import Counters

SKIPPED, IN_A_ROW = "skipped", "in_a_row"
ROLLBACKS, FACTOR = "rollbacks", "learning_rate_factor"
AT_FIRST: Counters = {SKIPPED: 0, IN_A_ROW: 0, ROLLBACKS: 0, FACTOR: 1.0}
OF_THE_RUN = (ROLLBACKS, FACTOR)
"""The counters that a run keeps when it goes back to an earlier state."""
_NAMES = 12


def sound_steps(step: int, counters: Counters) -> int:
    """Of ``step`` steps done, those before the row of skipped ones that they end with: so far a lost run goes back."""
    return step - int(counters.get(IN_A_ROW, 0))


class Health:
    """What bad numbers a run has met, and what is done about them (``[training.divergence]``).

    Args:
        pictures: the pictures of a micro-step, by their paths.
        restore: puts a saved state, with its counters, in the place of the present one: the last that was saved after
            at most so many steps; returns the steps done in it.
        counters: where all is counted; saved with the state. Empty for a run that begins.
    """

    def __init__(
        self,
        config: TrainingConfig,
        pictures: Callable[[int], list[str]],
        restore: Callable[[int], int],
        counters: Counters,
        on_event: Sink,
    ) -> None:
        self._config = config
        self._policy = config.divergence
        self._pictures = pictures
        self._restore = restore
        self._counters = counters
        self._on_event = on_event
        self._is_broken = False
        counters.update({**AT_FIRST, **counters})

    @property
    def skipped(self) -> int:
        """Steps that were skipped so far."""
        return int(self._counters[SKIPPED])

    @property
    def learning_rate_factor(self) -> float:
        """What the configured learning rate is multiplied by."""
        return float(self._counters[FACTOR])

    @property
    def is_lost(self) -> bool:
        """Whether the state is to be given up: its weights are not finite, or too many steps in a row were skipped."""
        # A run that is shorter than that has learned nothing when all its steps were skipped.
        patience = min(self._policy.patience, self._config.steps)
        return self._is_broken or self._counters[IN_A_ROW] >= patience

    def note(self, step: int, loss: float, grad_norm: float, weights_are_finite: bool) -> None:
        """Count step number ``step``, from 0; it was skipped if its loss or the norm of its gradients is not finite."""
        self._is_broken = not weights_are_finite
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self._counters[IN_A_ROW] = 0
            return
        before = self._counters[IN_A_ROW]
        self._counters[SKIPPED] += 1
        self._counters[IN_A_ROW] += 1
        row = f", as were the {before} before it" if before > 1 else ", as was the one before it" if before else ""
        message = (
            f"step {step + 1} was skipped{row}: loss {loss:.4g}, gradient norm {grad_norm:.4g}, on "
            f"{_named(self._pictures_of(step))}"
        )
        self._on_event(Warning(message))

    def go_back(self, step: int) -> int:
        """Give up the state after step number ``step``; returns the number of the step to go on with.

        Raises:
            DivergedError: that shall stop the run, or has been tried often enough.
            StorageError: there is nothing to go back to.
        """
        if self._policy.action == "stop" or self._counters[ROLLBACKS] >= self._policy.rollbacks:
            self._give_up(step)
        self._on_event(Warning(f"{self._told(step)}; going back, with a lower learning rate"))
        self._counters[ROLLBACKS] += 1
        self._counters[FACTOR] *= self._policy.learning_rate_factor
        # Checkpoints that were made since the first of those steps hold what led to them.
        step = self._restore(step if self._is_broken else sound_steps(step + 1, self._counters))
        self._counters[IN_A_ROW] = 0
        self._is_broken = False
        return step

    def _give_up(self, step: int) -> NoReturn:
        rollbacks = int(self._counters[ROLLBACKS])
        times = "once" if rollbacks == 1 else f"{rollbacks} times"
        back = (
            f"; the run went back {times}, to {self.learning_rate_factor:g} of the learning rate" if rollbacks else ""
        )
        raise DivergedError(
            f"training diverged: {self._told(step)}{back}",
            hint="look at these pictures; or resume with a lower --learning-rate, which goes on from the last "
            "checkpoint",
        )

    def _told(self, step: int) -> str:
        """What went wrong, with steps and pictures; first of all with those that every one of the steps had."""
        if self._is_broken:
            return f"after step {step + 1} the weights are not finite, on {_named(self._pictures_of(step))}"
        number = int(self._counters[IN_A_ROW])
        of_each = [self._pictures_of(each) for each in range(step + 1 - number, step + 1)]
        every = [each for each in of_each[0] if all(each in others for others in of_each)]
        pictures = list(dict.fromkeys(each for some in of_each for each in some))
        if every and len(every) < len(pictures):
            told = f"all of them on {_named(every)}, with {_named([each for each in pictures if each not in every])}"
        else:
            told = f"on {_named(pictures)}"
        steps = f"step {step + 1} was" if number == 1 else f"steps {step + 2 - number} to {step + 1} were"
        return f"{steps} skipped because losses or gradients are not finite, {told}"

    def _pictures_of(self, step: int) -> list[str]:
        """The pictures of a step's micro-batches, each once."""
        accumulation = self._config.accumulation
        micro_steps = range(step * accumulation, (step + 1) * accumulation)
        return list(dict.fromkeys(path for micro_step in micro_steps for path in self._pictures(micro_step)))


def _named(pictures: list[str]) -> str:
    return some_names([PurePath(path).name for path in pictures], _NAMES)
