"""A state to save that takes no time: an adapter of one layer, its optimizer, its average."""

from __future__ import annotations

from pathlib import Path

import torch

from fluxtune.lora.metadata import LoraFacts
from fluxtune.runs import Run
from fluxtune.training.checkpoint import Counters, Snapshot, load_checkpoint, take_snapshot
from fluxtune.training.ema import MovingAverage

FACTS = LoraFacts("mug", "nano", "flux-1-dev/lora", 2, 1, 1, 1e-3, "adamw", 42, 128, 3, 0.0, 1.0, None, "0")


class SmallState:
    """The state of a training after ``step`` steps, which is another one after each."""

    def __init__(self, step: int) -> None:
        generator = torch.Generator().manual_seed(7)
        shapes = {"blocks.0.q.lora_A": (2, 3), "blocks.0.q.lora_B": (4, 2)}
        self.parameters = {
            name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()
        }
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=1e-2)
        self.average = MovingAverage(self.parameters, 0.5)
        self.step = step
        for number in range(step):
            for parameter in self.parameters.values():
                parameter.grad = torch.full_like(parameter, 1.0 + number)
            self.optimizer.step()
            self.average.update()

    def snapshot(self, counters: Counters | None = None) -> Snapshot:
        return take_snapshot(
            self.step,
            self.parameters,
            self.optimizer,
            self.average,
            counters or {},
            0.5,
            torch.float32,
            FACTS,
        )

    def tensors(self) -> list[torch.Tensor]:
        moments = [value for state in self.optimizer.state.values() for _, value in sorted(state.items())]
        return [*self.parameters.values(), *self.average.average.values(), *moments]


def new_run(folder: Path) -> Run:
    return Run.create(folder, "name = 'mug'\n", {"name": "--name"}, {"device": "cpu"}, ["data"])


def holds(checkpoint: Path, state: SmallState) -> bool:
    """Whether a checkpoint gives back a state to the bit."""
    loaded = SmallState(1)
    step, _ = load_checkpoint(checkpoint, loaded.parameters, loaded.optimizer, loaded.average)
    same = zip(loaded.tensors(), state.tensors(), strict=True)
    return step == state.step and all(torch.equal(one, other) for one, other in same)
