"""What it costs that no work is lost: the time and size of a checkpoint, and what the training loop loses by it.

    python benchmarks/checkpoints.py --output benchmarks/results/checkpoints.json

Saving: the whole state of an adapter for `nano`, and of one for FLUX.1-dev, is copied (what the loop waits for), then
written, synced, hashed and read back (what a thread does meanwhile). Against it a bare `save_file`, which does not
sync: of the LoRA, and of that and all tensors of the state. Alternating, medians. The loop: `nano` trained on its demo
pictures with a checkpoint every 100 steps. It loses what its own thread does for them; and, where no core is free, at
most the processor time of the thread that writes as well.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from random_run import base_of
from report import heading, publish
from safetensors.torch import save_file

from fluxtune.captioning.missing import caption_bare
from fluxtune.config.layers import resolve
from fluxtune.config.lora import LoraConfig
from fluxtune.config.schema import Config
from fluxtune.environment.device import versions
from fluxtune.errors import ExitCode, Stopped
from fluxtune.events import Step
from fluxtune.flux.empty import empty_transformer, transformer_config
from fluxtune.lora.adapter import scale_of
from fluxtune.lora.files import folded_tensors
from fluxtune.lora.metadata import LoraFacts
from fluxtune.lora.targets import target_layers
from fluxtune.runs import Run
from fluxtune.training.checkpoint import Snapshot, take_snapshot, write_checkpoint
from fluxtune.training.ema import MovingAverage
from fluxtune.training.outputs import Outputs
from fluxtune.training.run import train
from fluxtune.training.saving import Saver

EVERY = 100
"""Steps between checkpoints."""
_FACTS = LoraFacts("mug", "random", "flux-1-dev/lora", 16, 1, 1, 1e-4, "adamw", 42, 1024, 9, 0.0, 1.0, None, "0")


class State:
    """A random adapter on a base's attention, with its optimizer after one step, and no average."""

    def __init__(self, scale: str, config: LoraConfig) -> None:
        base = base_of(scale)
        transformer = empty_transformer(base.family, transformer_config(base.family, base.folder))
        self.parameters: dict[str, torch.nn.Parameter] = {}
        for path in target_layers(transformer, config, base.family):
            layer = transformer.get_submodule(path)
            for name, shape in (
                ("lora_A", (config.rank, layer.in_features)),
                ("lora_B", (layer.out_features, config.rank)),
            ):
                self.parameters[f"{path}.{name}"] = torch.nn.Parameter(torch.randn(shape))
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=1e-4)
        for parameter in self.parameters.values():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()
        self.scale = scale_of(config)

    def snapshot(self, step: int) -> Snapshot:
        average = MovingAverage(self.parameters, 0.0)
        return take_snapshot(step, self.parameters, self.optimizer, average, {}, self.scale, torch.bfloat16, _FACTS)


def measure_saving(scale: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds and bytes of a checkpoint and of bare files."""
    state = State(scale, LoraConfig())
    run = Run.create(folder / scale, "", {}, {})
    times: dict[str, list[float]] = {"copy": [], "checkpoint": [], "save_file of the LoRA": [], "save_file of all": []}
    for step in range(1, rounds + 1):
        snapshot = timed(times["copy"], lambda step=step: state.snapshot(step))  # type: ignore[misc]
        timed(times["checkpoint"], lambda snapshot=snapshot: write_checkpoint(run, snapshot))  # type: ignore[misc]
        lora = folded_tensors(snapshot.layers, snapshot.dtype)
        state_of = {f"{part}.{name}": each for part, held in snapshot.tensors.items() for name, each in held.items()}
        for what, tensors in (("save_file of the LoRA", lora), ("save_file of all", lora | state_of)):
            bare = folder / f"{scale} {what}"
            timed(times[what], lambda tensors=tensors, bare=bare: save_file(tensors, bare))  # type: ignore[misc]
    checkpoint = sum(path.stat().st_size for path in run.checkpoints()[-1].rglob("*") if path.is_file())
    return {
        "weights": sum(parameter.numel() for parameter in state.parameters.values()),
        "seconds": {what: round(statistics.median(each), 4) for what, each in times.items()},
        "bytes": {
            "checkpoint": checkpoint,
            **{what: (folder / f"{scale} {what}").stat().st_size for what in times if what.startswith("save_file")},
        },
    }


def timed(times: list[float], work: Callable[[], Any]) -> Any:
    """What ``work`` gives; its seconds are added to ``times``."""
    started = time.perf_counter()
    result = work()
    times.append(time.perf_counter() - started)
    return result


@contextmanager
def watched() -> Iterator[tuple[list[float], list[float], list[float]]]:
    """Inside, gathers the seconds that the loop is in ``after_step``, and the thread's own and processor seconds."""
    inside: list[float] = []
    writing: list[float] = []
    processor: list[float] = []
    after_step, write = Outputs.after_step, Saver._write

    def watched_after_step(self: Outputs, step: int) -> None:
        timed(inside, lambda: after_step(self, step))

    def watched_write(self: Saver, snapshot: Snapshot) -> Any:
        began = time.thread_time()
        result = timed(writing, lambda: write(self, snapshot))
        processor.append(time.thread_time() - began)
        return result

    Outputs.after_step, Saver._write = watched_after_step, watched_write  # type: ignore[method-assign]
    try:
        yield inside, writing, processor
    finally:
        Outputs.after_step, Saver._write = after_step, write  # type: ignore[method-assign]


def measure_loop(config: Config, folder: Path, steps: int) -> dict[str, Any]:
    """What the loop loses by checkpoints, as a share of its time without them."""
    moments: list[float] = []

    def note(event: object) -> None:
        if isinstance(event, Step):
            moments.append(time.perf_counter())

    def enough() -> ExitCode | None:
        return ExitCode.INTERRUPTED if len(moments) > steps else None

    # A stop, for the last step of a run waits for its checkpoint.
    with watched() as (inside, writing, processor), suppress(Stopped):
        train(config, output=folder / "nano", on_event=note, should_stop=enough, caption_bare=caption_bare)
    every = config.checkpoints.every
    step_seconds = statistics.median(later - earlier for earlier, later in pairwise(moments))
    # The stop's own checkpoint is not one of the loop's.
    count = len(writing) - 1
    lost, of_processor = sum(inside) / count, sum(processor[:count]) / count
    return {
        "steps": len(moments),
        "checkpoints": count,
        "step_seconds": round(step_seconds, 4),
        "seconds_of_the_loop_a_checkpoint": round(lost, 5),
        "seconds_of_the_thread_a_checkpoint": round(sum(writing[:count]) / count, 4),
        "processor_seconds_of_the_thread_a_checkpoint": round(of_processor, 4),
        "share_lost": round(lost / (every * step_seconds), 5),
        "share_lost_at_most": round((lost + of_processor) / (every * step_seconds), 5),
    }


def measure(rounds: int, steps: int, every: int = EVERY, scales: tuple[str, ...] = ("tiny", "dev")) -> dict[str, Any]:
    """All figures."""
    sets = [f"checkpoints.every={every}", "previews.every=0", f"training.steps={2 * steps}"]
    config = resolve(preset="nano", config_file=None, flags={}, sets=sets, working_folder=Path.cwd()).config
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        saving = {scale: measure_saving(scale, folder, rounds) for scale in scales}
        return {"saving": saving, "loop": measure_loop(config, folder, steps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--note", help="what else should be known of the machine")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    figures = {
        **heading(f"python benchmarks/checkpoints.py --rounds {options.rounds} --steps {options.steps}"),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "note": options.note,
        **versions(),
        **measure(options.rounds, options.steps),
    }
    publish(figures, options.output)


if __name__ == "__main__":
    main()
