"""What is known of coming steps: the modulation of their forward calls, computed together (``flux/modulation.py``)."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from functools import partial

import torch

from fluxtune.config.training import TrainingConfig
from fluxtune.flux.modulation import foreseen
from fluxtune.training.processes import ALONE, Processes
from fluxtune.training.samples import SampleSource
from fluxtune.training.step import Learner, MicroBatch, velocity

SAMPLES_AHEAD = 64
"""A pass takes the 6.5 GB of FLUX.1-dev's modulation weights over the bus: 0.1 GB a sample so, as much as one of its
blocks in 8 bits. The rows take 2.1 MB a sample of system memory, or twice that with preservation."""


def micro_steps_of(step: int, config: TrainingConfig) -> range:
    """The micro-steps of a step, which is counted from 0 as they are."""
    return range(step * config.accumulation, (step + 1) * config.accumulation)


class Foresight:
    """The modulation of this process's part of coming steps, of as many together as is worth a pass over the weights.

    Use it as a context: what is known then is forgotten at its end.
    """

    def __init__(
        self, config: TrainingConfig, learner: Learner, source: SampleSource, processes: Processes = ALONE
    ) -> None:
        self._config, self._learner, self._source, self._processes = config, learner, source, processes
        self._known, self._rows = range(0), ExitStack()

    def look(self, step: int) -> None:
        """Make sure that the modulation of a step's forward calls is there."""
        if step in self._known:
            return
        self._forget()
        config, part_of = self._config, self._processes.part_of
        samples = config.batch_size * len(part_of(range(config.accumulation)))
        steps = range(step, min(step + max(1, SAMPLES_AHEAD // max(1, samples)), config.steps))
        own = [micro_step for each in steps for micro_step in part_of(micro_steps_of(each, config))]
        self._rows.enter_context(foreseeing(self._learner, self._source, own))
        self._known = steps

    def _forget(self) -> None:
        self._known = range(0)
        self._rows.close()

    def __enter__(self) -> Foresight:
        return self

    def __exit__(self, *error: object) -> None:
        self._forget()


def foreseeing(learner: Learner, source: SampleSource, micro_steps: Iterable[int]) -> AbstractContextManager[None]:
    """Inside, the modulation of the forward calls of some micro-steps is there."""
    return foreseen(learner.transformer, partial(_call_each, learner, source, micro_steps))


def _call_each(learner: Learner, source: SampleSource, micro_steps: Iterable[int]) -> None:
    """Every forward call of the micro-steps, on pictures of one empty token."""
    for micro_step in micro_steps:
        for condition in source.conditions(micro_step):
            sigmas = condition.sigmas
            empty = torch.zeros(len(sigmas), learner.transformer.config.in_channels, 1, 1, device=sigmas.device)
            velocity(learner, MicroBatch(empty, empty, sigmas, condition.text))
