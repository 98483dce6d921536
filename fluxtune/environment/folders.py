"""Where fluxtune keeps what it computed once, and what a disk has left."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """``$FLUXTUNE_CACHE``, or the user's cache folder where that is not set."""
    if chosen := os.environ.get("FLUXTUNE_CACHE"):
        return Path(os.path.expanduser(chosen))
    return platformdirs.user_cache_path("fluxtune", appauthor=False)


def free_space(folder: Path) -> int:
    """Bytes that are free on the disk of a folder, which exists."""
    return shutil.disk_usage(folder).free
