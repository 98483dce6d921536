"""Which checkpoints are kept, and how the others go."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from fluxtune.errors import StorageError
from fluxtune.manifests import verify_manifest
from fluxtune.runs import Run


class Retention:
    """Which checkpoints may go: those older than the newest ``keep`` that are whole on disk."""

    def __init__(self, run: Run, keep: int) -> None:
        self._run = run
        self._keep = keep
        self._verified: dict[Path, object] = {}

    def superseded(self) -> list[Path]:
        """Checkpoints that are not needed any more. What did not change since it was last read is not read again."""
        older = self._run.checkpoints()
        if len(older) <= self._keep:
            return []
        whole = 0
        while older and whole < self._keep:
            whole += self._is_whole(older.pop())
        return older

    def trust(self, folder: Path) -> None:
        """Take a checkpoint for whole that was just verified."""
        with suppress(OSError):
            self._verified[folder] = _marks(folder)

    def _is_whole(self, folder: Path) -> bool:
        try:
            marks = _marks(folder)
            if self._verified.get(folder) != marks:
                verify_manifest(folder)
                self._verified[folder] = marks
        except (StorageError, OSError):
            return False
        return True

    def drop(self, folder: Path) -> None:
        """Remove a checkpoint; killed meanwhile, it is not taken for a damaged one. What cannot be removed stays."""
        dropped = folder.with_name(f".{folder.name}.dropped")
        with suppress(OSError):
            os.replace(folder, dropped)
            shutil.rmtree(dropped)


def _marks(folder: Path) -> list[tuple[str, int, int, int]]:
    """By which a change of a folder's files is seen without reading them."""
    stats = [(str(path), path.stat()) for path in sorted(folder.rglob("*"))]
    return [(path, stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
