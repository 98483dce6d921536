"""What the work runs on: device, precision, versions, memory in use."""

from __future__ import annotations

import logging
import os
import platform
import sys
import warnings
from functools import cache
from importlib import metadata
from typing import Literal

from fluxtune.environment.launch import launched_for_the_processor, place, quiet_connections
from fluxtune.errors import UsageError
from fluxtune.events import Sink, Warning

PACKAGES = ("fluxtune", "torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes")

BESIDE_TORCH = int(0.6 * 2**30)
"""Bytes of a card that a process takes beside what torch's allocator reserves: the CUDA context with its kernels, and
the workspaces of libraries. An allowance, after what others report of 0.5 to 0.6 GiB; not measured here."""

_ALLOCATOR = "PYTORCH_ALLOC_CONF"
_ALLOCATOR_NAMES = (_ALLOCATOR, "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


_WORKSPACES = int(0.2 * 2**30)
"""Bytes of what is free on a card that stay free: for the workspaces of libraries, and what the desktop may want."""
_STEP = 2**26
"""What is free is planned for in whole multiples of this, so that a plan is found again where a little changed."""


def capacity_of(budget: float | None, device: str, held: int = 0, free: int | None = None) -> int | None:
    """Bytes that torch's allocator can have on the card; None where there is neither a card nor a budget.

    Args:
        held: bytes that it has already.
        free: bytes that are free where that is not this card's, but the fullest of several.
    """
    wanted = None if budget is None else max(0, int(budget * 2**30) - BESIDE_TORCH)
    if device != "cuda":
        return wanted
    import torch

    free = torch.cuda.mem_get_info()[0] if free is None else free
    free = (free + held - _WORKSPACES) // _STEP * _STEP
    return free if wanted is None else min(free, wanted)


def pick_device(wanted: Literal["auto", "cpu", "cuda"]) -> str:
    """``cpu`` or ``cuda``: what was wanted, or for ``auto`` the graphics card where there is one.

    Raises:
        UsageError: ``cuda`` was wanted and there is no card, or this torch is built without CUDA; or there are fewer
            cards than processes.
    """
    import torch

    if wanted == "cpu" or (wanted == "auto" and launched_for_the_processor()):
        return "cpu"
    if torch.cuda.is_available():
        processes = place().local_number
        if processes > 1 and torch.cuda.device_count() < processes:
            raise UsageError(
                f"{processes} processes were started, and torch finds {torch.cuda.device_count()} cards",
                hint="start as many processes as there are cards; or use --set training.device=cpu",
            )
        _expand_segments()
        return "cuda"
    if wanted == "auto":
        return "cpu"
    if torch.version.cuda is None and torch.version.hip is None:
        raise UsageError(
            f"device cuda was asked for, but this torch ({torch.__version__}) is built without CUDA",
            hint="`fluxtune doctor` names the torch for this card; or use --set training.device=cpu",
        )
    raise UsageError(
        "device cuda was asked for, but torch finds no usable graphics card",
        hint="`fluxtune doctor` says why; or use --set training.device=cpu",
    )


def takes_cards() -> bool:
    """Whether each process on this machine can have a card of its own."""
    import torch

    return (
        torch.cuda.is_available()
        and not launched_for_the_processor()
        and torch.cuda.device_count() >= place().local_number
    )


def _expand_segments() -> None:
    """Let torch's allocator enlarge the segments it has: sizes that come and go leave fewer gaps that nothing fits in.

    Torch reads this at the first allocation on the card. What the user says of the allocator stands. Windows has no
    such segments.
    """
    if sys.platform != "win32" and not any(name in os.environ for name in _ALLOCATOR_NAMES):
        os.environ[_ALLOCATOR] = "expandable_segments:True"


def warn_of_the_processor(device: str, wanted: str, on_event: Sink) -> None:
    """Report that ``auto`` found no usable graphics card, which a big model on a processor takes hours to show."""
    if device != "cpu" or wanted != "auto":
        return
    on_event(
        Warning(
            "no usable graphics card was found: this runs on the processor, which is very slow for a big model",
            hint="where there is a card, `fluxtune doctor` says what keeps torch from it",
        )
    )


def warn_without_bf16(device: str, on_event: Sink) -> None:
    """Report a graphics card that has no bfloat16 of its own (before the 30 series): it works, but slowly."""
    import torch

    if device == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        on_event(
            Warning(
                f"{torch.cuda.get_device_name()} has no native bfloat16: training on it is slow",
                hint="a card of the 30 series or newer has it",
            )
        )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide about numbers, as far as they are installed."""
    found = {package: _version(package) for package in PACKAGES}
    return {"python": platform.python_version(), **{package: each for package, each in found.items() if each}}


@cache
def _version(package: str) -> str | None:
    """Read once: plans ask for each of many ways to hold a run."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def memory_in_use(device: str) -> float:
    """GiB in use: on ``cuda`` the most that torch has held so far, on ``cpu`` this process's memory."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**30
    import psutil

    return psutil.Process().memory_info().rss / 2**30


def memory_held(device: str) -> int:
    """Bytes that torch's allocator has of the card; 0 without one."""
    if device != "cuda":
        return 0
    import torch

    return torch.cuda.memory_reserved()


def quiet_libraries() -> None:
    """Keep the libraries' own progress bars, log lines and warnings off the terminal, which fluxtune's events fill.

    For the command line; a Python caller keeps the settings of its process.
    """
    quiet_connections()
    import transformers

    # Before diffusers is imported, because its import makes transformers warn.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"diffusers|peft|bitsandbytes|transformers|torch")
