"""Memory and disks."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import psutil

from fluxtune.doctor.mends import in_wsl
from fluxtune.environment.folders import cache_folder, free_space
from fluxtune.events import Finding

LEAST_MEMORY = 15.0
"""GiB of system memory: T5-XXL, which reads the captions, takes 9.5 GB in bf16, beside the system and a browser.
A little below 16, as machines sold so show less."""

LEAST_PROMISED = 30.0
"""GiB of memory and page file that Windows must be able to promise: it counts what is reserved, not what is used."""

BASE_MODEL_BYTES = 34e9
"""FLUX.1-dev in diffusers' layout."""
CACHE_BYTES = 1e9
"""Two hundred captions and pictures; a caption's embedding takes 4 MiB."""
RUN_BYTES = 2e9
"""A run with its checkpoints and previews."""


def check_memory() -> Iterator[Finding]:
    """System memory, and what WSL and Windows do with it."""
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    total, second = min(memory.total, _container_limit()) / 2**30, swap.total / 2**30
    windows = platform.system() == "Windows"
    seen = f"{total:.1f} GiB, {memory.available / 2**30:.1f} of them free, and {second:.1f} GiB of " + (
        "page file" if windows else "swap"
    )
    if total < LEAST_MEMORY:
        hint = "close other programs while training; --set memory.text_precision=nf4 makes the text encoder smaller"
        if in_wsl():
            hint = (
                "WSL gives Linux half of the memory of Windows: write [wsl2] and below it memory=24GB into "
                "%UserProfile%\\.wslconfig in Windows, then: wsl --shutdown"
            )
        yield Finding("warning", "memory", f"{seen}: little for loading FLUX.1", hint=hint)
    elif windows and total + second < LEAST_PROMISED:
        hint = "make the page file larger (30 GB): SystemPropertiesPerformance, Advanced, Virtual memory"
        yield Finding("warning", "memory", f"{seen}: Windows may refuse to promise what loading asks for", hint=hint)
    else:
        yield Finding("ok", "memory", seen)


def check_disks(hub_cache: Path | None, download: bool, runs: Path) -> Iterator[Finding]:
    """Free space and the right to write where things go; folders on one disk share its space.

    Args:
        hub_cache: where the hub's client keeps models, if it told.
        download: whether the base model has to go there.
        runs: where run folders go.
    """
    wanted = [
        ("the hub's models", hub_cache, BASE_MODEL_BYTES if download else 0.0, "HF_HOME"),
        ("fluxtune's cached files", cache_folder(), CACHE_BYTES, "FLUXTUNE_CACHE"),
        ("runs", runs, RUN_BYTES, None),
    ]
    promised: dict[int, float] = {}
    for purpose, folder, needed, variable in wanted:
        if folder is None:
            continue
        existing = _existing(folder)
        elsewhere = f"set {variable} to a folder on another disk" if variable else "work in a folder on another disk"
        if not os.access(existing, os.W_OK):
            told = f"{purpose} go to a folder that you may not write to"
            yield Finding("error", "disk", told, where=str(folder), hint=elsewhere)
            continue
        disk = existing.stat().st_dev
        promised[disk] = promised.get(disk, 0.0) + needed
        free = free_space(existing)
        if free < promised[disk]:
            told = f"{purpose} need {needed / 1e9:.0f} GB, and {free / 1e9:.1f} GB are free for all that goes there"
            hint = f"free {(promised[disk] - free) / 1e9:.0f} GB, or {elsewhere}"
            yield Finding("error", "disk", told, where=str(folder), hint=hint)
        else:
            yield Finding("ok", "disk", f"{purpose}: {free / 1e9:.0f} GB free", where=str(folder))


def _existing(folder: Path) -> Path:
    """The folder, or what there is of the way to it."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def _container_limit() -> float:
    """Bytes that a container's processes may use together (Linux, cgroup 2)."""
    try:
        told = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return float("inf")
    return float(told) if told.isdigit() else float("inf")
