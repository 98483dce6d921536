"""The largest micro-batch before the first step, so that what does not fit in memory fails at once or never.

A fresh run's first micro-batch is its largest anyway, but by then there is no optimizer state, and a run that is
resumed begins anywhere. Nothing of the rehearsal stays: no gradients, and chance is drawn anew for every micro-step.
"""

from __future__ import annotations

import torch

from fluxtune.training.foresight import foreseeing
from fluxtune.training.optimizers import missing_state
from fluxtune.training.samples import SampleSource
from fluxtune.training.step import Learner, learn, preserve


def rehearse(learner: Learner, source: SampleSource) -> None:
    """Forward and backward of the largest micro-batch, with the memory taken that the optimizer will take.

    Raises:
        RuntimeError: the device has not enough memory, as torch says it.
    """
    samples = source.at(0)
    device = learner.accelerator.device
    optimizer_state = torch.empty(missing_state(learner.optimizer), dtype=torch.uint8, device=device)
    with foreseeing(learner, source, range(1)):
        learn(learner, samples.subject)
        if samples.preserved is not None:
            preserve(learner, samples.preserved, 0.0)
    for parameter in learner.parameters:
        parameter.grad = None
    del optimizer_state
