"""The training loop.

For each step: draw a batch of cached latents and embeddings, noise levels and noise; predict the velocity from picture
to noise; compare; go back; clip; update. ``step.py`` has the step, ``flux/objective.py`` the mathematics.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from fluxtune import rng
from fluxtune.config.training import TrainingConfig
from fluxtune.environment.device import memory_in_use
from fluxtune.errors import DivergedError, ExitCode, some_names
from fluxtune.events import Sink, Step
from fluxtune.training.ema import MovingAverage
from fluxtune.training.foresight import looking_ahead, micro_steps_of
from fluxtune.training.optimizers import learning_rate_at, set_learning_rate
from fluxtune.training.processes import ALONE, Processes
from fluxtune.training.rehearsal import rehearse
from fluxtune.training.samples import SampleSource
from fluxtune.training.step import Learner, learn, preserve, update

_RATE_SMOOTHING = 0.9


def train_steps(
    config: TrainingConfig,
    learner: Learner,
    source: SampleSource,
    average: MovingAverage,
    first_step: int,
    after_step: Callable[[int], None],
    should_stop: Callable[[], ExitCode | None],
    on_event: Sink,
    processes: Processes = ALONE,
) -> tuple[int, ExitCode | None]:
    """Train from ``first_step`` (steps already done) to ``config.steps``.

    Args:
        after_step: called with the number of steps done: previews and checkpoints.
        should_stop: asked before every step; an exit code ends the loop.
        processes: those that every step's micro-batches are dealt out among; all see the same numbers.

    Returns:
        The steps done, and None when those are all, else what ``should_stop`` answered.

    Raises:
        DivergedError: the loss or the gradients are not finite.
    """
    if first_step < config.steps:
        rehearse(learner, source)
    clock = _Clock(config.steps)
    guard_weight = config.preservation.weight * config.preservation.every
    should_stop = processes.together(should_stop)
    for step in looking_ahead(config, learner, source, first_step, processes):
        asked = should_stop()
        if asked is not None:
            return step, asked
        learning_rate = learning_rate_at(step, config)
        set_learning_rate(learner.optimizer, learning_rate)
        losses = []
        micro_steps = micro_steps_of(step, config)
        for micro_step in processes.part_of(micro_steps):
            samples = source.at(micro_step)
            torch.manual_seed(rng.derive(config.seed, "dropout", micro_step))
            losses.append(learn(learner, samples.subject))
            if samples.preserved is not None:
                preserve(learner, samples.preserved, guard_weight)
        loss = float(processes.all_losses(losses, len(micro_steps)).mean())
        processes.sum_gradients(learner.parameters)
        grad_norm = float(update(learner))
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise DivergedError(
                f"step {step + 1}: loss {loss}, gradient norm {grad_norm} on "
                f"{some_names(source.pictures(micro_steps[-1]))}",
                hint="resume from the last checkpoint with a lower --learning-rate",
            )
        average.update()
        rate, seconds_left = clock.tick(step + 1)
        memory = memory_in_use(learner.accelerator.device.type)
        on_event(
            Step(
                step=step + 1,
                total=config.steps,
                loss=loss,
                learning_rate=learning_rate,
                grad_norm=grad_norm,
                rate=rate,
                seconds_left=seconds_left,
                memory=memory,
                epoch=source.epoch(micro_steps[-1]),
            )
        )
        after_step(step + 1)
        clock.restart()
    return config.steps, None


class _Clock:
    """Steps a second, smoothed, without the time that previews and checkpoints take."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._seconds: float | None = None
        self.restart()

    def restart(self) -> None:
        self._started = time.monotonic()

    def tick(self, done: int) -> tuple[float, float]:
        """(steps a second, seconds left) after a step."""
        seconds = max(1e-9, time.monotonic() - self._started)
        smoothing = _RATE_SMOOTHING if self._seconds is not None else 0.0
        self._seconds = smoothing * (self._seconds or 0.0) + (1.0 - smoothing) * seconds
        return 1.0 / self._seconds, (self._total - done) * self._seconds
