"""The state that a run goes back to when what it has in memory is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from fluxtune.errors import StorageError
from fluxtune.events import RolledBack, Sink
from fluxtune.training.checkpoint import is_whole, last_good_checkpoint, load_checkpoint, steps_done
from fluxtune.training.health import AT_FIRST, OF_THE_RUN
from fluxtune.training.outputs import Outputs


class SavedState:
    """That of the last checkpoint, or that in which the run began.

    Args:
        first_step: steps done in the state that is in memory now; at 0 that is kept, as the beginning.
    """

    def __init__(self, outputs: Outputs, first_step: int, on_event: Sink) -> None:
        self._outputs = outputs
        self._on_event = on_event
        self._first_step = first_step
        self._beginning: dict[str, torch.Tensor] = {}
        if first_step == 0:
            self._beginning = {name: each.detach().cpu().clone() for name, each in outputs.loaded.parameters.items()}

    @property
    def run(self) -> str:
        """The run folder."""
        return str(self._outputs.run.folder)

    def save(self, step: int) -> None:
        """Make a checkpoint of the state in memory, after ``step`` steps, and wait until it is whole.

        Raises:
            StorageError: it cannot be written.
        """
        if step > self._first_step:
            self._outputs.checkpoint(step)
            self._outputs.settle()

    def restore(self, latest: int) -> int:
        """Put the saved state in the place of what is in memory; returns the steps done in it.

        Checkpoints of later steps are removed: the run turns back from them. How often it did so stays counted.

        Args:
            latest: the state after more steps than that is no good either.

        Raises:
            StorageError: no checkpoint is whole.
        """
        outputs, loaded = self._outputs, self._outputs.loaded
        outputs.settle()
        optimizer = loaded.learner.optimizer.optimizer
        # What it held would be on the card beside what comes.
        optimizer.state.clear()
        kept = {name: outputs.counters[name] for name in OF_THE_RUN}
        folder = self._folder(latest)
        if folder is not None:
            step, counters = load_checkpoint(folder, loaded.parameters, optimizer, loaded.average)
        else:
            step, counters = self._begin_again(), AT_FIRST
        outputs.counters.clear()
        outputs.counters.update({**counters, **kept})
        factor = float(kept["learning_rate_factor"])
        self._on_event(RolledBack(step, None if folder is None else str(folder), factor))
        return step

    def _folder(self, latest: int) -> Path | None:
        """The checkpoint to go back to, the newest there is now; None for the beginning."""
        run = self._outputs.run
        newest = last_good_checkpoint(run, self._on_event)
        if newest is None and not self._beginning:
            raise StorageError(
                "no whole checkpoint is left to go back to",
                where=str(run.folder),
                hint="train again from the start, into another run folder",
            )
        sound = [folder for folder in run.checkpoints() if is_whole(folder) and steps_done(folder) <= latest]
        folder = sound[-1] if sound else None if self._beginning else newest
        for later in run.checkpoints():
            if folder is None or steps_done(later) > steps_done(folder):
                shutil.rmtree(later)
        if folder is not None:
            run.update(step=steps_done(folder), checkpoint=folder.relative_to(run.folder).as_posix())
        return folder

    @torch.no_grad()
    def _begin_again(self) -> int:
        """The state before the first step."""
        loaded = self._outputs.loaded
        for name, tensor in self._beginning.items():
            loaded.parameters[name].copy_(tensor)
        loaded.average.reset()
        return 0
