"""The state that a run goes back to when what it has in memory is lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from fluxtune.errors import StorageError
from fluxtune.events import RolledBack, Sink
from fluxtune.training.checkpoint import is_whole, last_good_checkpoint, load_checkpoint, steps_done
from fluxtune.training.health import AT_FIRST, OF_THE_RUN
from fluxtune.training.outputs import Outputs


class SavedState:
    """That of a checkpoint, or that in which the run began.

    Of checkpoints those of ``checkpoints.every`` come first, before those that were made because the run was stopped or
    ran out of memory: so a run that was goes back to where another one does.

    Args:
        outputs: with what was loaded as it is now, before a checkpoint is loaded into it.
        goes_on: a checkpoint follows; then the beginning is not known of a run that was started from another LoRA.
    """

    def __init__(self, outputs: Outputs, goes_on: bool, on_event: Sink) -> None:
        self._outputs = outputs
        self._on_event = on_event
        self._beginning: dict[str, torch.Tensor] = {}
        if not (goes_on and outputs.config.lora.init_from):
            self._beginning = {name: each.detach().cpu().clone() for name, each in outputs.loaded.parameters.items()}

    @property
    def run(self) -> str:
        """The run folder."""
        return str(self._outputs.run.folder)

    def save(self, step: int) -> None:
        """Make a checkpoint of the state in memory, after ``step`` steps, unless there is one; wait until it is whole.

        Raises:
            StorageError: it cannot be written.
        """
        run = self._outputs.run
        if step and run.checkpoint_folder(step) not in run.checkpoints():
            self._outputs.checkpoint(step)
            self._outputs.settle()

    def restore(self, latest: int) -> int:
        """Put the saved state in the place of what is in memory; returns the steps done in it.

        Checkpoints of later steps, from which the run turns back, are renamed ``abandoned-step-...``. How often it did
        so stays counted.

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
        every = self._outputs.config.checkpoints.every
        sound = [folder for folder in run.checkpoints() if steps_done(folder) <= latest and is_whole(folder)]
        regular = [folder for folder in sound if every and steps_done(folder) % every == 0]
        folder = next((some[-1] for some in (regular, sound) if some), None if self._beginning else newest)
        for later in run.checkpoints():
            if folder is None or steps_done(later) > steps_done(folder):
                aside = later.with_name(f"abandoned-{later.name}")
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(later, aside)
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
