"""A step that no longer fits in memory: another program took what the plan had counted on.

Its gradients are dropped, which leaves the state after the step before. That is saved, what is free is given back to
the card, and the model that is loaded is made to take less, rung by rung (``rungs.py``). Then the same step is tried
again. Where not even the last rung fits, what took the memory may let go of it soon.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from shlex import quote

import torch

from fluxtune.config.memory import MemoryConfig
from fluxtune.environment.device import capacity_of, memory_held
from fluxtune.errors import ExitCode
from fluxtune.events import Sink, Warning
from fluxtune.flux.load import free_memory, stream_evenly
from fluxtune.memory.shortage import Shortage, does_not_fit, tried
from fluxtune.training.fitting import wording
from fluxtune.training.load import recompute
from fluxtune.training.planning import Planned
from fluxtune.training.rungs import lower_rungs, rungs_that_fit
from fluxtune.training.saved_state import SavedState
from fluxtune.training.step import Learner, discard

PAUSES = (5.0, 15.0, 30.0, 60.0)
"""Seconds to wait, one after the other, where nothing is left to be given up."""
_GLANCE = 0.5
"""Seconds of waiting between two looks at whether to stop."""
SMALLER = "take a smaller preset (`fluxtune presets` lists them) or --resolution, or --set memory.recompute=all"


def no_room(step: int, shortage: Shortage, in_update: bool = False) -> int:
    """Gives up at once: of several processes none can take less than the others, which wait for its gradients.

    Raises:
        OutOfMemoryError: in any case.
    """
    raise does_not_fit(f"step {step + 1}", shortage, SMALLER)


class Relief:
    """Makes room for the steps of one run.

    Args:
        memory: how the model is held now.
        plan: what says how much each way to hold it takes; None where no plan was made.
        has_stepped: whether this process has made a step, so that the run did fit.
        should_stop: asked while waiting.

    Attributes:
        memory: how the model is held now.
    """

    def __init__(
        self,
        learner: Learner,
        memory: MemoryConfig,
        plan: Planned | None,
        saved: SavedState,
        has_stepped: Callable[[], bool],
        should_stop: Callable[[], ExitCode | None],
        on_event: Sink,
    ) -> None:
        self.memory = memory
        self._learner = learner
        self._plan = plan
        self._saved = saved
        self._has_stepped = has_stepped
        self._should_stop = should_stop
        self._on_event = on_event
        self._waiting_for: int | None = None
        self._waits = 0

    def make_room(self, step: int, shortage: Shortage, in_update: bool = False) -> int:
        """Take less memory from now on; returns the number of the step to go on with, which is ``step``.

        Args:
            step: number of the step that did not fit, from 0.
            in_update: the optimizer may have moved some weights and not others, so an earlier step is returned: that
                after the newest checkpoint.

        Raises:
            OutOfMemoryError: it takes as little as it can, and waiting did not help.
            StorageError: the state cannot be saved, or there is none to go back to.
        """
        discard(self._learner)
        free_memory()
        if not in_update:
            self._saved.save(step)
        if not self._take_less(step, shortage):
            self._wait(step, shortage)
        return self._saved.restore(step, newest=True) if in_update else step

    def _take_less(self, step: int, shortage: Shortage) -> bool:
        """Go one rung down, or further where it is known that one does not suffice; whether there was one."""
        for memory in self._rungs():
            if isinstance(tried(partial(self._hold, memory)), Shortage):
                free_memory()
                continue
            self.memory = memory
            reason = f" ({shortage.reason})" if shortage.reason else ""
            self._on_event(
                Warning(
                    f"step {step + 1} did not fit in memory any more{reason}; trying it again with "
                    f"{wording(memory, sum(self._blocks))}",
                    hint="another program may have taken memory of the card; what is learned stays the same, and a "
                    "resumed run plans anew",
                )
            )
            return True
        return False

    def _hold(self, memory: MemoryConfig) -> None:
        learner = self._learner
        if memory.streamed_blocks != self.memory.streamed_blocks:
            stream_evenly(learner.transformer, learner.family, memory.streamed_blocks, str(self._device))
        recompute(learner.transformer, learner.family, memory)

    def _rungs(self) -> list[MemoryConfig]:
        """Ways to hold the model that take less than now and may fit, the one that costs least first."""
        if self._plan is None:
            return lower_rungs(self.memory, self._blocks)
        device = self._device.type
        capacity = capacity_of(self.memory.budget, device, memory_held(device))
        work = self._plan.work.with_memory(**self.memory.model_dump())
        return rungs_that_fit(replace(work, capacity=capacity), self._blocks)

    def _wait(self, step: int, shortage: Shortage) -> None:
        """Wait for memory to come free, longer each time that the same step fails.

        Raises:
            OutOfMemoryError: that was tried often enough, or no step was ever made.
        """
        if step != self._waiting_for:
            self._waiting_for, self._waits = step, 0
        if not self._has_stepped():
            raise does_not_fit("this training", shortage, SMALLER)
        if self._waits == len(PAUSES):
            raise does_not_fit(
                f"step {step + 1}, recomputed and streamed as far as that goes,",
                shortage,
                "close what else takes memory of the card, then go on from the last checkpoint with: "
                f"fluxtune train --resume {quote(str(self._saved.run.folder))}",
            )
        pause = PAUSES[self._waits]
        self._waits += 1
        self._on_event(Warning(f"step {step + 1} does not fit in memory; trying it again in {pause:.0f} s"))
        end = time.monotonic() + pause
        while time.monotonic() < end and self._should_stop() is None:
            time.sleep(min(_GLANCE, pause))

    @property
    def _blocks(self) -> list[int]:
        """How many there are of each kind."""
        transformer = self._learner.transformer
        return [len(list(transformer.get_submodule(name).children())) for name in self._learner.family.blocks]

    @property
    def _device(self) -> torch.device:
        device: torch.device = self._learner.accelerator.device
        return device
