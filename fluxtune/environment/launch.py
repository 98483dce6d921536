"""Several processes of one run, as ``accelerate launch`` and ``torchrun`` start them: which of them this one is."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """One of ``number`` processes, counted from 0; ``local`` and ``local_number`` count those on its machine.

    The local count says which card a process has.
    """

    index: int = 0
    number: int = 1
    local: int = 0
    local_number: int = 1

    @property
    def is_main(self) -> bool:
        """Whether it is the one that prepares, writes and speaks."""
        return self.index == 0


def place() -> Place:
    """Where this process stands among those that were started together; alone where nothing says so."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    values = [os.environ.get(name, "") for name in names]
    # Others set WORLD_SIZE, too; a launcher also says where to meet.
    if not all(value.isdecimal() for value in values) or "MASTER_ADDR" not in os.environ:
        return Place()
    return Place(*map(int, values))


def quiet_connections() -> None:
    """Keep torch from writing pages of warnings when another of several processes leaves first, unless the user set a
    level. What it says of failures stays, and fluxtune says the rest. To be called before torch is imported."""
    if place().number > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def launched_for_the_processor() -> bool:
    """Whether ``accelerate launch --cpu`` wants the graphics card left alone."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on", "y", "t")


def started_alone() -> bool:
    """Whether ``accelerate launch`` was asked for several processes and started one, as it does with ``--cpu``."""
    several = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    return several and "WORLD_SIZE" not in os.environ
