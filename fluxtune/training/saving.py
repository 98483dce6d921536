"""Saving behind the loop's back: a thread writes a checkpoint while training goes on.

At its step only a ``Snapshot`` is taken. One is written at a time; the next waits for the one before. The thread writes
files and nothing else: what the run records, says and drops is done by the training thread, when it next looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from fluxtune.errors import FluxtuneError, StorageError
from fluxtune.events import Checkpoint, Sink, Warning
from fluxtune.files import waiting_helps
from fluxtune.runs import Run
from fluxtune.training.checkpoint import Snapshot, write_checkpoint
from fluxtune.training.health import sound_steps
from fluxtune.training.retention import Retention

T = TypeVar("T")

PAUSES = (2.0, 10.0, 30.0, 60.0, 120.0)
"""Seconds between attempts at a save that fails with what waiting can help: a full disk, a file system that is gone."""


class _Written(NamedTuple):
    """A checkpoint is: what is not needed any more because of it, and the seconds that all of this took."""

    superseded: list[Path]
    seconds: float


class Saver:
    """Writes the checkpoints of a run; as a context, it finishes what it began, whatever ends the work inside.

    Args:
        retention: says what goes once a checkpoint is whole.
        pauses: as ``PAUSES``; when the last attempt fails, the run is stopped.
    """

    def __init__(self, run: Run, retention: Retention, on_event: Sink, pauses: tuple[float, ...] | None = None) -> None:
        self._run = run
        self._retention = retention
        self._on_event = on_event
        self._pauses = PAUSES if pauses is None else pauses
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._step = 0
        self._unsaved: Snapshot | None = None
        self._writing: Future[_Written] | None = None
        self._failures = 0
        self._next_attempt = 0.0

    def has(self, step: int) -> bool:
        """Whether the checkpoint of this step is whole or begun."""
        is_begun = self._unsaved is not None and self._unsaved.step == step
        return is_begun or self._run.checkpoint_folder(step) in self._run.checkpoints()

    def begin(self, snapshot: Snapshot) -> None:
        """Write a snapshot from now on. Waits for the one before; where that failed so far, this one replaces it.

        Raises:
            StorageError: the one before could not be written, and is not tried again.
        """
        self._finish()
        self._step = snapshot.step
        self._unsaved = snapshot
        self.look()

    def look(self) -> None:
        """Say and record what has been written since; try again what failed, once it is time. Does not wait.

        Raises:
            StorageError: it could not be written, and is not tried again.
        """
        if self._writing is not None and self._writing.done():
            self._finish()
        if self._unsaved is not None and self._writing is None and time.monotonic() >= self._next_attempt:
            self._writing = self._thread.submit(self._write, self._unsaved)

    def settle(self) -> None:
        """Wait until everything is on disk.

        Raises:
            StorageError: it could not be written, however often it was tried.
        """
        while self._unsaved is not None:
            if self._writing is None:
                time.sleep(max(0.0, self._next_attempt - time.monotonic()))
            self.look()
            self._finish()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """After an error: finish what is being written, try once more what failed; the error goes on its way."""
        if error is None or self._unsaved is None:
            return
        self._next_attempt, self._failures = 0.0, len(self._pauses)
        try:
            self.look()
            self._finish()
        except FluxtuneError as failure:
            message = f"the checkpoint of step {self._step} could not be saved: {failure.message}"
            self._on_event(Warning(message, failure.where, failure.hint))

    def _finish(self) -> None:
        """Wait for what is being written, if anything is, and see how it went."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            written = writing.result()
        except StorageError as error:
            self._failed(error)
        except BaseException:
            self._unsaved = None
            raise
        else:
            self._unsaved, self._failures, self._next_attempt = None, 0, 0.0
            self._saved(written)

    def _failed(self, error: StorageError) -> None:
        """Put the save off, or give it up."""
        if not waiting_helps(error) or self._failures == len(self._pauses):
            self._unsaved = None
            self._run.require_there()
            raise error
        pause = self._pauses[self._failures]
        self._failures += 1
        self._next_attempt = time.monotonic() + pause
        message = (
            f"the checkpoint of step {self._step} could not be saved: {error.message}; trying again in {pause:.0f} s"
        )
        self._on_event(Warning(message, error.where, error.hint))

    def _saved(self, written: _Written) -> None:
        """Record the checkpoint, say so, and drop the oldest."""
        folder = self._run.checkpoint_folder(self._step)
        try:
            self._run.update(step=self._step, checkpoint=self._run.within(folder))
        except StorageError as error:
            # The checkpoint counts without; the next update writes this one, too.
            if not waiting_helps(error):
                raise
            self._on_event(Warning(f"the run's record is out of date: {error.message}", error.where, error.hint))
        self._on_event(Checkpoint(self._step, str(folder), written.seconds))
        for old in written.superseded:
            self._retention.drop(old)

    def _write(self, snapshot: Snapshot) -> _Written:
        """What the thread does."""
        began = time.monotonic()
        write_checkpoint(self._run, snapshot)
        self._retention.trust(self._run.checkpoint_folder(snapshot.step))
        superseded = self._retention.superseded(snapshot.step, sound_steps(snapshot.step, snapshot.record["counters"]))
        return _Written(superseded, round(time.monotonic() - began, 3))


def patiently(work: Callable[[], T], what: str, on_event: Sink, pauses: tuple[float, ...] | None = None) -> T:
    """Does ``work``, after pauses again where it fails with what waiting can help.

    Raises:
        StorageError: it failed, the last time too.
    """
    for pause in PAUSES if pauses is None else pauses:
        try:
            return work()
        except StorageError as error:
            if not waiting_helps(error):
                raise
            on_event(Warning(f"{what} failed: {error.message}; trying again in {pause:.0f} s", error.where, error.hint))
            time.sleep(pause)
    return work()
