"""What is known of coming steps: the modulation of their forward calls, computed together (``flux/modulation.py``)."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from functools import partial

import torch

from fluxtune.config.training import TrainingConfig
from fluxtune.flux.modulation import foreseen
from fluxtune.training.samples import SampleSource
from fluxtune.training.step import Learner, MicroBatch, velocity

SAMPLES_AHEAD = 64
"""A pass takes the 6.5 GB of FLUX.1-dev's modulation weights over the bus: 0.1 GB a sample so, as much as one of its
blocks in 8 bits. The rows take 2.1 MB a sample of system memory, or twice that with preservation."""


class Foresight:
    """The modulation of coming steps, of as many together as is worth a pass over the weights.

    Use it as a context: what is known then is forgotten at its end.
    """

    def __init__(self, config: TrainingConfig, learner: Learner, source: SampleSource) -> None:
        self._config, self._learner, self._source = config, learner, source
        self._known, self._rows = range(0), ExitStack()

    def look(self, step: int) -> None:
        """Make sure that the modulation of a step's forward calls is there."""
        if step in self._known:
            return
        self._forget()
        config = self._config
        together = max(1, SAMPLES_AHEAD // (config.batch_size * config.accumulation))
        steps = range(step, min(step + together, config.steps))
        micro_steps = range(steps.start * config.accumulation, steps.stop * config.accumulation)
        self._rows.enter_context(foreseeing(self._learner, self._source, micro_steps))
        self._known = steps

    def _forget(self) -> None:
        self._known = range(0)
        self._rows.close()

    def __enter__(self) -> Foresight:
        return self

    def __exit__(self, *error: object) -> None:
        self._forget()


def foreseeing(learner: Learner, source: SampleSource, micro_steps: range) -> AbstractContextManager[None]:
    """Inside, the modulation of the forward calls of some micro-steps is there."""
    return foreseen(learner.transformer, partial(_call_each, learner, source, micro_steps))


def _call_each(learner: Learner, source: SampleSource, micro_steps: range) -> None:
    """Every forward call of the micro-steps, on pictures of one empty token."""
    for micro_step in micro_steps:
        for condition in source.conditions(micro_step):
            sigmas = condition.sigmas
            empty = torch.zeros(len(sigmas), learner.transformer.config.in_channels, 1, 1, device=sigmas.device)
            velocity(learner, MicroBatch(empty, empty, sigmas, condition.text))
