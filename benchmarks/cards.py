"""Train FLUX.1-dev on random weights with every preset, within the memory that it plans for; no download is needed.

    python benchmarks/cards.py --output card.json

Each preset is planned for this card, runs in a process of its own, and may take from the card no more than the preset's
`memory.budget`, or what is free. It encodes a caption and a picture, loads the transformer, trains --steps steps, makes
one denoising step and the picture of a preview, and trains once more with every block recomputed, where the plan does
something else. Written down are the peak of each phase and the time of a step, beside what the plan foretold. A preset
that does not fit, or fails, is told as such, and the others go on. `--scale tiny` does the same with the small model
that ships with fluxtune, on a processor, too; there, memory is that of the process alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch
from random_run import SCALES, RandomSource, base_of, learner, step_operations, text_encoders, vae
from report import heading, write

from fluxtune.config.layers import resolve
from fluxtune.config.presets import built_in_folder, listing
from fluxtune.environment.card import look
from fluxtune.environment.device import pick_device, quiet_libraries, versions
from fluxtune.errors import StorageError
from fluxtune.events import ignore
from fluxtune.flux.load import free_memory
from fluxtune.flux.weights import DTYPES
from fluxtune.lora.adapter import adapter_parameters, as_saved, scale_of
from fluxtune.memory.forecast import Forecast
from fluxtune.memory.plan import operations_of
from fluxtune.memory.shortage import Shortage, does_not_fit
from fluxtune.training.ema import MovingAverage
from fluxtune.training.fitting import work_of
from fluxtune.training.forecasts import costs_of
from fluxtune.training.health import Health
from fluxtune.training.loop import train_steps
from fluxtune.training.planning import Planned, planned
from fluxtune.training.simulation import STEP, Work
from fluxtune.training.step import Learner

GIB = 2**30
WARM_UP = 3


def within(preset: str, scale: str, steps: int, side: int | None, device: str) -> Work:
    """The training of a preset, and what this process may take of the card for it: from now on, no more."""
    sets = [f"training.steps={steps}", "previews.every=1"]
    config = resolve(preset=preset, config_file=None, flags={}, sets=sets, working_folder=Path()).config
    side = side or max(config.dataset.resolution)
    config = config.model_copy(update={"dataset": config.dataset.model_copy(update={"resolution": [side]})})
    work = work_of(config, base_of(scale), device, [(side, side)])
    if device == "cuda" and work.capacity is not None:
        torch.cuda.set_per_process_memory_fraction(work.capacity / torch.cuda.mem_get_info()[1])
    return work


def measure(preset: str, scale: str, steps: int, side: int | None) -> dict[str, Any]:
    """One preset: what was planned, and what came of it. Whatever goes wrong is part of the answer."""
    device = pick_device("auto")
    quiet_libraries()
    figures: dict[str, Any] = {"preset": preset, "scale": scale}
    try:
        plan = planned(within(preset, scale, steps, side, device))
        figures |= _told(plan)
        if plan.fits:
            Measurement(plan, device, figures).run()
    # The others shall go on, and what was measured so far is worth as much.
    except Exception as error:
        figures["failed"] = f"{type(error).__name__}: {error}"
    return figures


def _told(plan: Planned) -> dict[str, Any]:
    work = plan.work
    return {
        "side": work.size[0],
        "batch_size": work.config.training.batch_size,
        "room_gib": None if work.capacity is None else _gib(work.capacity),
        "fits": plan.fits,
        "lacking_gib": _gib(plan.lacking),
        "memory": plan.memory.model_dump(mode="json"),
        "foretold_gib": {
            name: {"allocated": _gib(allocated), "reserved": _gib(reserved)}
            for name, (allocated, reserved) in _foretold(plan.forecast).items()
        },
        "foretold_system_gib": {name: _gib(size) for name, size in (plan.forecast.system or {}).items()},
    }


def _foretold(forecast: Forecast) -> dict[str, tuple[int, int]]:
    """Bytes allocated and reserved of each phase that is measured."""
    found: dict[str, tuple[int, int]] = {}
    for each in forecast.phases:
        name = "step" if each.phase in STEP else each.phase
        allocated, reserved = found.get(name, (0, 0))
        found[name] = max(allocated, each.bytes), max(reserved, each.reserved)
    return found


class Measurement:
    """The phases of one plan, run for real. ``figures`` takes what is measured as it is."""

    def __init__(self, plan: Planned, device: str, figures: dict[str, Any]) -> None:
        self._plan = plan
        self._work = plan.work
        self._device = device
        self._figures = figures
        self._figures["phases"] = {}

    def run(self) -> None:
        """All of them."""
        self._encode()
        with self._phase("load"):
            trained = learner(self._work, self._device)
        config = self._work.config
        average = MovingAverage(adapter_parameters(trained.transformer), config.training.ema_decay)
        with self._phase("step"):
            seconds = self._steps(self._work, trained, average)
        with self._phase("preview"):
            self._preview(trained, average)
        operations = config.training.accumulation * (step_operations(self._work) + self._plan.again)
        self._figures |= {"step_seconds": round(seconds, 4), "step_operations": operations, **self._beside_torch()}
        del trained, average
        self._compare_recomputation(seconds)

    def _encode(self) -> None:
        work, family = self._work, self._work.base.family
        with self._phase("encode captions"), torch.no_grad():
            encoders = text_encoders(work, self._device)
            for encoder, tokens in zip(encoders, family.text_lengths(encoders, work.base.text_tokens), strict=True):
                encoder(torch.zeros(1, tokens, dtype=torch.long, device=self._device))
            del encoder, encoders
        with self._phase("encode pictures"), torch.no_grad():
            (width, height), made = work.size, self._vae()
            pixels = torch.zeros(1, 3, height, width, dtype=work.dtype, device=self._device)
            family.encode_image(made, pixels, torch.Generator())
            del made

    def _steps(self, work: Work, trained: Learner, average: MovingAverage) -> float:
        """The loop of ``train``; seconds a step, once it is warm."""
        ends: list[float] = []
        source = RandomSource(work, self._device)
        train_steps(
            config=work.config.training,
            learner=trained,
            source=source,
            average=average,
            first_step=0,
            health=Health(work.config.training, source.pictures, _no_way_back, {}, ignore),
            make_room=_no_relief,
            after_step=lambda _: ends.append(_now(self._device)),
            should_stop=lambda: None,
            on_event=ignore,
        )
        # The first step is left out: the loop begins with other things.
        between = [end - begun for begun, end in pairwise(ends)]
        return statistics.median(between[min(WARM_UP, len(between) - 1) :])

    def _preview(self, trained: Learner, average: MovingAverage) -> None:
        """One denoising step and the picture that comes of it, as ``previews.py`` makes them."""
        work, family, (width, height) = self._work, self._work.base.family, self._work.preview or self._work.size
        free_memory()
        made = self._vae()
        batch = RandomSource(work, self._device).at(0).subject
        shape = (1, batch.latents.shape[1], height // family.side_multiple, width // family.side_multiple)
        text = {name: tensor[:1] for name, tensor in batch.text.items()}
        file_dtype, lora = DTYPES[work.config.checkpoints.dtype], work.config.lora
        trained.transformer.eval()
        saved = as_saved(adapter_parameters(trained.transformer), scale_of(lora), file_dtype, trained.dtype)
        with average.applied(), saved, torch.no_grad():
            latents = torch.randn(shape, dtype=trained.dtype, device=self._device)
            sigmas = torch.ones(1, device=self._device)
            latents = latents + family.forward(trained.transformer, latents, sigmas, text, trained.guidance)
            family.decode_image(made, latents)

    def _vae(self) -> Any:
        return vae(self._work.base, self._work.config.memory.vae_tiling, self._work.dtype, self._device)

    def _compare_recomputation(self, seconds: float) -> None:
        """The time of a step in which every block is recomputed over that of the plan, foretold and measured."""
        memory = self._plan.memory.model_copy(update={"recompute": "all", "keep": type(self._plan.memory.keep)()})
        if memory == self._plan.memory:
            return
        work = replace(self._work, config=self._work.config.model_copy(update={"memory": memory}))
        kinds, once = costs_of(work).kinds, step_operations(work)
        everything = operations_of(kinds, [{"nothing": kind.count} for kind in kinds])
        free_memory()
        trained = learner(work, self._device)
        all_seconds = self._steps(work, trained, MovingAverage({}, 0.0))
        self._figures["recomputing_all"] = {
            "step_seconds": round(all_seconds, 4),
            "times_as_long": round(all_seconds / seconds, 3),
            "foretold_times_as_long": round((once + everything) / (once + self._plan.again), 3),
        }

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Measures what is done inside; where it fails, too."""
        if name != "step":
            free_memory()
        if self._device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        begun = _now(self._device)
        try:
            yield
        finally:
            self._figures["phases"][name] = {
                "seconds": round(time.monotonic() - begun, 2),
                "process_gib": _gib(psutil.Process().memory_info().rss),
                **(self._peaks(name) if self._device == "cuda" else {}),
            }

    def _peaks(self, name: str) -> dict[str, Any]:
        measured = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        foretold = dict(zip(measured, _foretold(self._plan.forecast)[name], strict=True))
        return {f"{kind}_gib": _gib(size) for kind, size in measured.items()} | {
            f"{kind}_foretold_too_high_percent": round(100 * (foretold[kind] / size - 1), 2)
            for kind, size in measured.items()
        }

    def _beside_torch(self) -> dict[str, Any]:
        """What the process takes of the card beside torch's allocator, where the system tells."""
        held = next((each.held for each in look().holders if each.pid == os.getpid()), None)
        return {} if held is None else {"beside_torch_gib": round(held - torch.cuda.memory_reserved() / GIB, 3)}


def _no_way_back(_: int) -> int:
    raise StorageError("nothing is saved here")


def _no_relief(step: int, shortage: Shortage, _: bool) -> int:
    """What is measured is the plan as it was made."""
    raise does_not_fit(f"step {step + 1}", shortage, "leave the card to the benchmark")


def card() -> dict[str, Any]:
    """The machine, and what its card can do at most: large matrix products in bf16, and copies to it."""
    device = pick_device("auto")
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "cpu",
        "driver": look().driver,
        "system_gib": _gib(psutil.virtual_memory().total),
        "versions": versions(),
    }
    side = 8192 if device == "cuda" else 512
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    figures["operations_a_second"] = 2 * side**3 / min(_seconds(lambda: a @ b, device) for _ in range(10))
    if device == "cuda":
        held = torch.empty(GIB, dtype=torch.uint8, pin_memory=True)
        there = torch.empty(GIB, dtype=torch.uint8, device=device)
        seconds = min(_seconds(lambda: there.copy_(held, non_blocking=True), device) for _ in range(5))
        figures |= {"card_gib": _gib(torch.cuda.mem_get_info()[1]), "bus_bytes_a_second": GIB / seconds}
    return figures


def _seconds(work: Any, device: str) -> float:
    begun = _now(device)
    work()
    return _now(device) - begun


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


def _gib(size: int) -> float:
    return round(size / GIB, 3)


def _in_a_process(options: argparse.Namespace, what: str) -> dict[str, Any]:
    """``card()``, or ``measure`` of a preset, with the card to itself."""
    command = [sys.executable, __file__, "--measure", what, *_asked(options)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    return {"preset": what, "scale": options.scale, "failed": f"the process ended with exit code {done.returncode}"}


def main() -> None:
    shipped = [each.name for each in listing() if each.file.parent == built_in_folder() and each.name != "nano"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", help=f"may be given again; by default {', '.join(shipped)}")
    parser.add_argument("--scale", choices=SCALES, default="dev", help="dev needs a graphics card")
    parser.add_argument("--steps", type=int, default=20, help="at least 2")
    parser.add_argument("--side", type=int, help="pixels; by default the preset's resolution")
    parser.add_argument("--output", type=Path, default=Path("card.json"))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps < 2:
        parser.error("--steps must be 2 or more")
    if options.measure:
        chosen = (options.measure, options.scale, options.steps, options.side)
        print(json.dumps(card() if options.measure == "card" else measure(*chosen)))
        return
    if options.scale == "dev" and not torch.cuda.is_available():
        parser.error("torch finds no graphics card: `fluxtune doctor` says why; --scale tiny needs none")
    report = {
        **heading(" ".join(["python benchmarks/cards.py", *_asked(options)])),
        **_in_a_process(options, "card"),
        "runs": [],
    }
    for preset in options.preset or shipped:
        print(f"{preset}: ", end="", flush=True)
        figures = _in_a_process(options, preset)
        if "step_seconds" in figures:
            rate = figures["step_operations"] / figures["step_seconds"]
            figures["share_of_matrix_rate"] = round(rate / report["operations_a_second"], 3)
        report["runs"].append(figures)
        print(_summary(figures), flush=True)
        write(report, options.output)
    print(f"Written to {options.output}: please send this file in an issue of fluxtune.")
    print("It tells of the card, the system's memory, the libraries and the presets.")


def _asked(options: argparse.Namespace) -> list[str]:
    """What the command line says of the size of the work."""
    side = ["--side", str(options.side)] if options.side else []
    return ["--scale", options.scale, "--steps", str(options.steps), *side]


def _summary(figures: dict[str, Any]) -> str:
    if "failed" in figures:
        return figures["failed"]
    if not figures["fits"]:
        return f"does not fit this card: {figures['lacking_gib']} GiB are lacking"
    peaks = [phase["allocated_gib"] for phase in figures["phases"].values() if "allocated_gib" in phase]
    peak = f", at most {max(peaks):.2f} GiB" if peaks else ""
    return f"{figures['step_seconds']:.2f} s a step{peak}"


if __name__ == "__main__":
    main()
