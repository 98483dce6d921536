"""The training loop.

For each step: draw a batch of cached latents and embeddings, noise levels and noise; predict the velocity from picture
to noise; compare; go back; clip; update. ``step.py`` has the step, ``flux/objective.py`` the mathematics, ``health.py``
what is done about numbers that are not finite, ``relief.py`` what about memory that no longer suffices.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from fluxtune import rng
from fluxtune.config.training import TrainingConfig
from fluxtune.environment.device import memory_in_use
from fluxtune.errors import ExitCode
from fluxtune.events import Sink, Step
from fluxtune.memory.shortage import Shortage, tried
from fluxtune.training.ema import MovingAverage
from fluxtune.training.foresight import Foresight, micro_steps_of
from fluxtune.training.health import Health
from fluxtune.training.optimizers import learning_rate_at, set_learning_rate
from fluxtune.training.processes import ALONE, Processes
from fluxtune.training.rehearsal import rehearse
from fluxtune.training.samples import SampleSource
from fluxtune.training.step import Learner, clip, discard, has_finite_weights, learn, preserve, update

_RATE_SMOOTHING = 0.9


def train_steps(
    config: TrainingConfig,
    learner: Learner,
    source: SampleSource,
    average: MovingAverage,
    first_step: int,
    health: Health,
    make_room: Callable[[int, Shortage, bool], int],
    after_step: Callable[[int], None],
    should_stop: Callable[[], ExitCode | None],
    on_event: Sink,
    processes: Processes = ALONE,
) -> tuple[int, ExitCode | None]:
    """Train from ``first_step`` (steps already done) to ``config.steps``.

    Args:
        make_room: called with the number of a step that does not fit in memory, from 0, and with whether it was the
            optimizer's part of it; returns the number of the step to go on with.
        after_step: called with the number of steps done: previews and checkpoints.
        should_stop: asked before every step; an exit code ends the loop.
        processes: those that every step's micro-batches are dealt out among; all see the same numbers.

    Returns:
        The steps done, and None when those are all, else what ``should_stop`` answered.

    Raises:
        DivergedError: numbers are not finite, and ``health`` gives up.
    """
    step, clock, should_stop = first_step, _Clock(config.steps), processes.together(should_stop)
    while step < config.steps and isinstance(shortage := tried(partial(rehearse, learner, source)), Shortage):
        make_room(step, shortage, False)
    with Foresight(config, learner, source, processes) as foresight:
        while step < config.steps:
            asked = should_stop()
            if asked is not None:
                return step, asked
            clock.restart()
            learning_rate = learning_rate_at(step, config) * health.learning_rate_factor
            set_learning_rate(learner.optimizer, learning_rate)
            gradients = tried(partial(_gradients, config, learner, source, foresight, processes, step))
            if isinstance(gradients, Shortage):
                step = make_room(step, gradients, False)
                continue
            weights_are_finite = tried(partial(_move, learner, average, gradients))
            if isinstance(weights_are_finite, Shortage):
                step = make_room(step, weights_are_finite, True)
                continue
            health.note(step, gradients.loss, gradients.norm, weights_are_finite)
            rate, seconds_left = clock.tick(step + 1)
            on_event(
                Step(
                    step=step + 1,
                    total=config.steps,
                    loss=gradients.loss,
                    learning_rate=learning_rate,
                    grad_norm=gradients.norm,
                    rate=rate,
                    seconds_left=seconds_left,
                    memory=memory_in_use(learner.accelerator.device.type),
                    epoch=gradients.epoch,
                    skipped=health.skipped,
                )
            )
            if health.is_lost:
                step = health.go_back(step)
                continue
            step += 1
            after_step(step)
    return config.steps, None


@dataclass(frozen=True)
class _Gradients:
    """Of a step, clipped; they are in the parameters. ``norm`` is that before clipping."""

    loss: float
    norm: float
    epoch: int

    @property
    def are_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.norm)


def _gradients(
    config: TrainingConfig,
    learner: Learner,
    source: SampleSource,
    foresight: Foresight,
    processes: Processes,
    step: int,
) -> _Gradients:
    """Forward and backward of a step's micro-batches: this process's part of them, and the sum over all processes."""
    foresight.look(step)
    guard_weight = config.preservation.weight * config.preservation.every
    own, micro_steps = [], micro_steps_of(step, config)
    for micro_step in processes.part_of(micro_steps):
        samples = source.at(micro_step)
        torch.manual_seed(rng.derive(config.seed, "dropout", micro_step))
        own.append(learn(learner, samples.subject))
        if samples.preserved is not None:
            preserve(learner, samples.preserved, guard_weight)
    losses = processes.all_losses(own, len(micro_steps))
    processes.sum_gradients(learner.parameters)
    norm = clip(learner)
    return _Gradients(float(losses.mean()), float(norm), source.epoch(micro_steps[-1]))


def _move(learner: Learner, average: MovingAverage, gradients: _Gradients) -> bool:
    """Step the optimizer, unless the gradients are not finite; returns whether the weights are."""
    if not gradients.are_finite:
        discard(learner)
        return True
    update(learner)
    if not has_finite_weights(learner):
        return False
    average.update()
    return True


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
