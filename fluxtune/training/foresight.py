"""What is known of coming steps: the modulation of their forward calls, computed together (``flux/modulation.py``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
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


def looking_ahead(
    config: TrainingConfig, learner: Learner, source: SampleSource, first_step: int, processes: Processes = ALONE
) -> Iterator[int]:
    """The steps from ``first_step``, each given out when the modulation of this process's forward calls is there."""
    samples = config.batch_size * len(processes.part_of(range(config.accumulation)))
    together = max(1, SAMPLES_AHEAD // max(1, samples))
    for start in range(first_step, config.steps, together):
        end = min(start + together, config.steps)
        own = [each for step in range(start, end) for each in processes.part_of(micro_steps_of(step, config))]
        with foreseeing(learner, source, own):
            yield from range(start, end)


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
