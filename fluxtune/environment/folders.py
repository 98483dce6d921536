"""Where fluxtune keeps what it computed once, and what a disk has left."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import platformdirs

from fluxtune.errors import StorageError


def cache_folder() -> Path:
    """``$FLUXTUNE_CACHE``, or the user's cache folder where that is not set.

    Raises:
        StorageError: there is neither; a folder named ``~`` would be made in the working folder.
    """
    if chosen := os.environ.get("FLUXTUNE_CACHE"):
        return Path(os.path.expanduser(chosen))
    with suppress(RuntimeError):
        folder = platformdirs.user_cache_path("fluxtune", appauthor=False)
        if folder.is_absolute():
            return folder
    raise StorageError("you have no home folder to keep a cache in", where="HOME", hint="set HOME or FLUXTUNE_CACHE")


def free_space(folder: Path) -> int:
    """Bytes that are free on the disk of a folder, which exists."""
    return shutil.disk_usage(folder).free
