"""What a run survives on this machine: killed and resumed, and out of memory because another program took the card.

    python benchmarks/survival.py --scale middle --output benchmarks/results/survival.json

Runs of `fluxtune train`, each in a process of its own, on random pictures and the embedded model, or a wider one of
some 300 million random weights. First two unbroken runs, and one that is killed with SIGKILL in the middle and resumed:
how far are its weights from theirs, and theirs from each other's? Then, on a card: while a run trains, a second process
takes whatever is free of the card and comes free, until the run has made ten more steps, or has nothing more to give up
and waits. What did it give up, how long was it without a step, and how far are its weights?
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from report import heading, publish
from safetensors.torch import load_file

from fluxtune import nano
from fluxtune.environment.device import pick_device, quiet_libraries, versions

Events = list[dict[str, Any]]

WIDE = {
    "num_attention_heads": 8,
    "attention_head_dim": 128,
    "axes_dims_rope": [16, 56, 56],
    "num_layers": 4,
    "num_single_layers": 8,
}
"""What makes the embedded model's transformer a wider one."""
STEPS_BESIDE = 10
"""Steps that a run makes while its card is taken."""
HOLDER = """
import sys, time, torch
held = [torch.empty(1, device="cuda")]
print("ready", flush=True)
sys.stdin.readline()
while True:
    free = torch.cuda.mem_get_info()[0] - 2**25
    if free > 2**20:
        try:
            held.append(torch.empty(free, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            pass
    print(sum(each.nbytes for each in held), flush=True)
    time.sleep(0.02)
"""
"""Once it is told to, takes all of the card but 32 MiB, until it is killed."""


class Runs:
    """Runs of one configuration, in folders under ``place``.

    Args:
        scale: ``nano``, the embedded model, or ``middle``.
        sets: settings, as ``--set`` takes them.
    """

    def __init__(self, place: Path, scale: str, steps: int, side: int, device: str, sets: list[str]) -> None:
        self._place = place
        self._steps = steps
        pictures = place / "pictures"
        pictures.mkdir()
        random = np.random.default_rng(0)
        for index in range(4):
            Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8)).save(pictures / f"{index}.png")
            (pictures / f"{index}.txt").write_text(f"a zorvex number {index}", encoding="utf-8")
        base = str(_middle(place / "base")) if scale == "middle" else "nano"
        precision = "bf16" if device == "cuda" else "fp32"
        settings = {
            "model.base": base,
            "dataset.resolution": f"[{side}]",
            "training.device": device,
            "training.precision": precision,
            "memory.base_precision": precision,
            "memory.text_precision": precision,
            "memory.recompute": "none",
            "checkpoints.every": max(1, steps // 6),
            "checkpoints.dtype": "fp32",
            "previews.every": max(1, steps // 6),
            "previews.steps": 2,
        }
        given = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        self._train = [
            str(pictures),
            "--steps",
            str(steps),
            *given,
            *(part for each in sets for part in ("--set", each)),
        ]

    def unbroken(self, name: str) -> Events:
        """A run from its beginning to its end."""
        return _watched([*self._train, "--output", str(self._place / name)])

    def killed(self, name: str) -> Events:
        """A run that is killed in the middle of a step after half of them, and resumed."""
        folder = self._place / name
        _watched([*self._train, "--output", str(folder)], lambda events, run: _kill(events, run, self._steps // 2 + 1))
        return _watched(["--resume", str(folder)])

    def squeezed(self, name: str) -> tuple[Events, dict[str, Any]]:
        """A run whose card is taken for ten steps, from a third of them on, and what that was like."""
        holder = _Holder(self._steps // 3)
        try:
            events = _watched([*self._train, "--output", str(self._place / name)], holder)
        finally:
            holder.let_go()
        return events, holder.figures

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """The LoRA that a run made."""
        return load_file(self._place / name / f"{name}.safetensors")


def _kill(events: Events, run: subprocess.Popen[str], step: int) -> None:
    if events[-1].get("step") == step and events[-1]["event"] == "step":
        run.send_signal(signal.SIGKILL)


class _Holder:
    """Takes the card once a run has made so many steps, and gives it back ten steps later, or when the run waits.

    Attributes:
        figures: what was taken.
    """

    def __init__(self, step: int) -> None:
        self._step = step
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()
        self.figures: dict[str, Any] = {}

    def __call__(self, events: Events, _: subprocess.Popen[str]) -> None:
        last = events[-1]
        step = last["step"] if last["event"] == "step" else None
        waits = last["event"] == "warning" and "trying it again in" in last["message"]
        if step == self._step:
            assert self._process.stdin is not None
            self._process.stdin.write("take it\n")
            self._process.stdin.flush()
            self.figures["taken_gib"] = round(int(self._answer()) / 2**30, 2)
        elif waits or step == self._step + STEPS_BESIDE:
            self.let_go()

    def let_go(self) -> None:
        """Give the card back."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def _watched(
    arguments: list[str], after_each: Callable[[Events, subprocess.Popen[str]], None] = lambda events, run: None
) -> Events:
    """The events of a `fluxtune train`, each with the time at which it came; ``after_each`` of them is called."""
    command = [sys.executable, "-m", "fluxtune", "train", *arguments, "--json"]
    events: Events = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        for line in run.stdout:
            events.append({**json.loads(line), "came": time.monotonic()})
            after_each(events, run)
    return events


def measure(runs: Runs, device: str) -> dict[str, Any]:
    """All of it; distances are relative to the size of the LoRA."""
    ends = {"unbroken": runs.unbroken("unbroken"), "again": runs.unbroken("again"), "killed": runs.killed("killed")}
    figures: dict[str, Any] = {"ended": {name: _ended(events) for name, events in ends.items()}}
    plain = runs.weights("unbroken")
    figures["resumed_at_step"] = next(event["step"] for event in ends["killed"] if event["event"] == "resumed")
    figures["distance_of_two_unbroken"] = distance(plain, runs.weights("again"))
    figures["distance_of_killed_and_resumed"] = distance(plain, runs.weights("killed"))
    if device == "cuda":
        events, taken = runs.squeezed("squeezed")
        figures["ended"]["squeezed"] = _ended(events)
        figures["out_of_memory"] = taken | {
            "told": [event["message"] for event in events if event["event"] == "warning"],
            "seconds_a_step": round(_gaps(ends["unbroken"])[len(_gaps(ends["unbroken"])) // 2], 4),
            "longest_without_a_step": round(max(_gaps(events)), 2),
        }
        if figures["ended"]["squeezed"] == "result":
            figures["out_of_memory"]["distance"] = distance(plain, runs.weights("squeezed"))
    return figures


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over the norm of ``one``, all layers together."""
    assert one.keys() == other.keys()
    whole, difference = (
        sum(float(each.double().square().sum()) for each in some)
        for some in (one.values(), (one[name].double() - other[name].double() for name in one))
    )
    return float(f"{(difference / whole) ** 0.5:.4g}")


def _ended(events: Events) -> str:
    """``result``, or the error."""
    last = events[-1]
    return "result" if last["event"] == "result" else str(last.get("message", last["event"]))


def _gaps(events: Events) -> list[float]:
    """Seconds between steps, in their order of length."""
    times = [event["came"] for event in events if event["event"] == "step"]
    return sorted(later - earlier for earlier, later in pairwise(times))


def _middle(folder: Path) -> Path:
    """The wider model, with random weights, on disk."""
    from diffusers import FluxTransformer2DModel  # not for --help: its import takes seconds, and others' warnings

    shutil.copytree(nano.model_folder(), folder, ignore=shutil.ignore_patterns("transformer"))
    config = FluxTransformer2DModel.load_config(nano.model_folder() / "transformer")
    torch.manual_seed(0)
    FluxTransformer2DModel.from_config({**config, **WIDE}).bfloat16().save_pretrained(folder / "transformer")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--scale", choices=("nano", "middle"), default="nano", help="nano (default); middle is for a card"
    )
    parser.add_argument("--steps", type=int, default=60, help="of each run, 6 or more (60)")
    parser.add_argument("--side", type=int, default=128, help="of the square pictures, in pixels (128)")
    parser.add_argument("--set", action="append", default=[], dest="sets", help="a setting of the runs; again for more")
    parser.add_argument("--output", type=Path, help="JSON file for the figures, which are printed in any case")
    options = parser.parse_args()
    quiet_libraries()
    device = pick_device("auto")
    asked = ["--scale", options.scale, "--steps", str(options.steps), "--side", str(options.side)]
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder), options.scale, options.steps, options.side, device, options.sets)
        figures = measure(runs, device)
    report = {
        **heading(" ".join(["python benchmarks/survival.py", *asked, *(f"--set {each}" for each in options.sets)])),
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "cpu",
        "versions": versions(),
        **figures,
    }
    publish(report, options.output)


if __name__ == "__main__":
    main()
