"""A stage's budget of minutes: its clock, its learning rate, its checkpoint and its record."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

COMPUTE = (
    torch.bfloat16 if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported() else torch.float32
)
"""bfloat16 is the faster one only where the processor multiplies it; elsewhere it is far slower."""


@dataclass
class Budget:
    """Counts the time of a stage over all the runs that worked on it."""

    minutes: float
    spent: float = 0.0
    """Seconds that earlier runs used."""
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return self.spent + time.monotonic() - self.started

    @property
    def fraction(self) -> float:
        """How much of the budget is used, from 0 to 1."""
        return min(1.0, self.seconds / (60 * self.minutes))


def rate_at(fraction: float, warm_up: float = 0.02, decay: float = 0.25) -> float:
    """The learning rate's factor at a fraction of the budget: up in the first part, down to 0 in the last."""
    return min(1.0, (fraction + 1e-4) / warm_up, (1 - fraction) / decay)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes the state beside `path`, then puts it in place whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state saved last, or None on a first run."""
    return torch.load(path, weights_only=True) if path.exists() else None


def require_checkpoint(path: Path, stage: str) -> dict[str, Any]:
    """The state that an earlier stage left.

    Raises:
        FileNotFoundError: that stage has not run.
    """
    state = load_checkpoint(path)
    if state is None:
        raise FileNotFoundError(f"{path}: run the {stage} stage first")
    return state


def record(work: Path, stage: str, **reached: Any) -> None:
    """Adds what a stage reached to `recipe.json` in the work folder."""
    path = work / "recipe.json"
    records = json.loads(path.read_text()) if path.exists() else {}
    records[stage] = {**reached, "finished": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}
    path.write_text(json.dumps(records, indent=2) + "\n")


def say(message: str) -> None:
    """One line of progress with its time."""
    print(time.strftime("%H:%M:%S"), message, flush=True)
