"""Which checkpoints are kept, which one a run goes back to, and how the others go."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from fluxtune.manifests import is_whole
from fluxtune.runs import ABANDONED, Run, step_of

DROPPED = ".dropped"
"""Ends the name of a checkpoint that is being removed."""


def return_point(
    folders: Sequence[Path], latest: int, every: int, whole: Callable[[Path], bool] = is_whole
) -> Path | None:
    """The checkpoint that a run goes back to when its state is lost; None where none will do.

    The newest of ``checkpoints.every``, before one that was made because the run was stopped or ran out of memory: so
    a run that was goes back to where another one does.

    Args:
        folders: those of the checkpoints, newest last.
        latest: the state after more steps than that is no good.
        every: as ``checkpoints.every``.
    """
    sound = [folder for folder in folders if step_of(folder) <= latest]
    regular = [folder for folder in sound if every and step_of(folder) % every == 0]
    return next((folder for some in (regular, sound) for folder in reversed(some) if whole(folder)), None)


class Retention:
    """Which checkpoints may go: those older than the newest ``keep`` that are whole on disk, and not gone back to.

    Args:
        every: as ``checkpoints.every``.
    """

    def __init__(self, run: Run, keep: int, every: int) -> None:
        self._run = run
        self._keep = keep
        self._every = every
        self._verified: dict[Path, object] = {}

    def superseded(self, step: int, sound: int) -> list[Path]:
        """What is not needed any more now that the checkpoint of ``step`` is whole: older ones, and those that the run
        turned back from. What did not change since it was last read is not read again.

        Args:
            sound: see ``health.sound_steps``; the run may yet go back to that state.
        """
        checkpoints = self._run.checkpoints()
        older, whole = list(checkpoints), 0
        while older and whole < self._keep:
            whole += self._is_whole(older.pop())
        points = {return_point(checkpoints, latest, self._every, self._is_whole) for latest in (sound, step)}
        return self._run.checkpoint_folders(ABANDONED) + [folder for folder in older if folder not in points]

    def trust(self, folder: Path) -> None:
        """Take a checkpoint for whole that was just verified."""
        with suppress(OSError):
            self._verified[folder] = _marks(folder)

    def _is_whole(self, folder: Path) -> bool:
        with suppress(OSError):
            marks = _marks(folder)
            if self._verified.get(folder) == marks:
                return True
            if is_whole(folder):
                self._verified[folder] = marks
                return True
        return False

    def tidy(self, step: int, sound: int) -> None:
        """Drop what a process had not come to drop when it was killed; see ``superseded``."""
        if len(self._run.checkpoints()) > self._keep:
            for folder in self.superseded(step, sound):
                self.drop(folder)
        for dropped in self._run.checkpoint_folder(step).parent.glob(f".*{DROPPED}"):
            shutil.rmtree(dropped, ignore_errors=True)

    def drop(self, folder: Path) -> None:
        """Remove a checkpoint; killed meanwhile, it is not taken for a damaged one. What cannot be removed stays."""
        dropped = folder.with_name(f".{folder.name}{DROPPED}")
        with suppress(OSError):
            os.replace(folder, dropped)
            shutil.rmtree(dropped)


def _marks(folder: Path) -> list[tuple[str, int, int, int]]:
    """By which a change of a folder's files is seen without reading them."""
    stats = [(str(path), path.stat()) for path in sorted(folder.rglob("*"))]
    return [(path, stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
