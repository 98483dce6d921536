"""The state that a run goes back to when what it has in memory is lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from fluxtune.config.schema import Config
from fluxtune.errors import StorageError
from fluxtune.events import RolledBack, Sink
from fluxtune.files import storage_errors, sync_folder
from fluxtune.runs import ABANDONED, Run, step_of
from fluxtune.training.checkpoint import Counters, last_good_checkpoint, load_checkpoint
from fluxtune.training.health import AT_FIRST, FACTOR, OF_THE_RUN
from fluxtune.training.load import Loaded
from fluxtune.training.outputs import Outputs
from fluxtune.training.retention import return_point


class Memory:
    """What a process has in memory of the state, and how an earlier one is put in its place.

    Args:
        loaded: as it is now, before a checkpoint is loaded into it.
        counters: of ``health.py``.
        keeps_beginning: whether this is the state in which the run began.
    """

    def __init__(self, loaded: Loaded, counters: Counters, keeps_beginning: bool) -> None:
        self._loaded = loaded
        self._counters = counters
        self.beginning: dict[str, torch.Tensor] = {}
        if keeps_beginning:
            self.beginning = {name: each.detach().cpu().clone() for name, each in loaded.parameters.items()}

    def put_back(self, folder: Path | None) -> int:
        """The state of a checkpoint, or without one that of the beginning; returns the steps done in it.

        The counters of the whole run stay.
        """
        loaded, optimizer = self._loaded, self._loaded.learner.optimizer.optimizer
        # What it held would be on the card beside what comes.
        optimizer.state.clear()
        kept = {name: self._counters[name] for name in OF_THE_RUN}
        if folder is not None:
            step, counters = load_checkpoint(folder, loaded.parameters, optimizer, loaded.average)
        else:
            step, counters = self._begin_again(), AT_FIRST
        self._counters.clear()
        self._counters.update({**counters, **kept})
        return step

    @torch.no_grad()
    def _begin_again(self) -> int:
        """The state before the first step."""
        for name, tensor in self.beginning.items():
            self._loaded.parameters[name].copy_(tensor)
        self._loaded.average.reset()
        return 0


class SavedState:
    """That of a checkpoint, by default as ``retention.return_point`` chooses it, or that in which the run began.

    Args:
        outputs: with what was loaded as it is now, before a checkpoint is loaded into it.
        goes_on: a checkpoint follows; then the beginning is not known of a run that was started from another LoRA.
        hand_out: tells the run's other processes which checkpoint to go back to; each of them waits for that.
    """

    def __init__(
        self,
        outputs: Outputs,
        goes_on: bool,
        on_event: Sink,
        hand_out: Callable[[str | None], object] = lambda folder: None,
    ) -> None:
        self._outputs = outputs
        self._on_event = on_event
        self._hand_out = hand_out
        self._memory = Memory(outputs.loaded, outputs.counters, knows_beginning(outputs.config, goes_on))

    @property
    def run(self) -> Run:
        """The run that it is the state of."""
        return self._outputs.run

    def save(self, step: int) -> None:
        """Make a checkpoint of the state in memory, after ``step`` steps, unless there is one; wait until it is whole.

        Raises:
            StorageError: it cannot be written.
        """
        if step:
            self._outputs.checkpoint(step)
            self._outputs.settle()

    def restore(self, latest: int, newest: bool = False) -> int:
        """Put the saved state in the place of what is in memory; returns the steps done in it.

        Checkpoints of later steps, from which the run turns back, are renamed ``abandoned-step-...`` until the next one
        is whole. How often it did so stays counted.

        Args:
            latest: the state after more steps than that is no good either.
            newest: take the newest checkpoint, whatever it was made for: what went wrong is not in the state.

        Raises:
            StorageError: no checkpoint is whole.
        """
        self._outputs.settle()
        folder = self._return_point(latest, 1 if newest else self._outputs.config.checkpoints.every)
        step, path = (0, None) if folder is None else (step_of(folder), str(folder))
        self._abandon_after(step)
        self.run.update(step=step, checkpoint=None if folder is None else self.run.within(folder))
        self._hand_out(path)
        self._memory.put_back(folder)
        self._on_event(RolledBack(step, path, float(self._outputs.counters[FACTOR])))
        return step

    def _return_point(self, latest: int, every: int) -> Path | None:
        """The checkpoint to go back to; None for the beginning."""
        newest = last_good_checkpoint(self.run, self._on_event)
        if newest is None and not self._memory.beginning:
            raise StorageError(
                "no whole checkpoint is left to go back to",
                where=str(self.run.folder),
                hint="train again from the start, into another run folder",
            )
        folder = return_point(self.run.checkpoints(), latest, every)
        return folder if folder is not None or self._memory.beginning else newest

    def _abandon_after(self, step: int) -> None:
        """Put the checkpoints of later steps aside."""
        for later in self.run.checkpoints():
            if step_of(later) > step:
                aside = later.with_name(later.name.replace("step-", ABANDONED))
                shutil.rmtree(aside, ignore_errors=True)
                with storage_errors(later):
                    os.replace(later, aside)
                    sync_folder(later.parent)


def knows_beginning(config: Config, goes_on: bool) -> bool:
    """Whether what is loaded, before a checkpoint is, is the state in which the run began."""
    return not (goes_on and config.lora.init_from)
