"""Make pictures with FLUX.1-dev on random weights, as presets hold it, beside FluxPipeline by hand; no download.

    python benchmarks/pictures.py --output benchmarks/results/pictures.json

Each preset is planned for this card as `fluxtune sample` plans, runs in a process of its own, and may take from the
card no more than its `memory.budget`, or what is free. By hand, diffusers' pipeline holds everything in bf16: on the
card where that fits within the same, else with `enable_sequential_cpu_offload`, which is what diffusers has for it.
Prompts are encoded before and not counted. `--scale tiny` does the same with the small model that ships with fluxtune,
on a processor, too.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from random_run import SCALES, base_of, random_weights, vae
from report import heading, write

from fluxtune.config.layers import resolve
from fluxtune.config.memory import MemoryConfig
from fluxtune.environment.device import capacity_of, pick_device, quiet_libraries, versions
from fluxtune.events import ignore
from fluxtune.flux.denoise import Request, generate, looking_ahead
from fluxtune.flux.empty import empty_transformer, transformer_config
from fluxtune.flux.load import build_transformer, free_memory
from fluxtune.flux.sizes import transformer_bytes
from fluxtune.flux.weights import DTYPES
from fluxtune.nano import model_folder
from fluxtune.sampling.fitting import fitted
from fluxtune.sampling.simulation import Painting

GIB = 2**30
PRESETS = ("12gb", "24gb", "80gb")
PLAIN = MemoryConfig(base_precision="bf16", text_precision="bf16", modulation="card")
ROOM = 3 * GIB
"""Beside the transformer, for what FluxPipeline computes with and for its VAE."""


class Work:
    """The pictures of a preset, and what this process may take of the card for them."""

    def __init__(self, preset: str, scale: str, side: int, steps: int, number: int) -> None:
        config = resolve(preset=preset, config_file=None, flags={}, sets=[], working_folder=Path()).config
        self.device = pick_device("auto")
        self.base, self.dtype = base_of(scale), DTYPES[config.training.precision]
        self.capacity = capacity_of(config.memory.budget, self.device)
        if self.device == "cuda" and self.capacity is not None:
            torch.cuda.set_per_process_memory_fraction(self.capacity / torch.cuda.mem_get_info()[1])
        guidance = self.base.family.sampling_guidance
        self.requests = [Request("", side, side, steps, guidance, seed) for seed in range(number)]
        blank = self.base.family.blank_text(self._config, 1, self.base.text_tokens)
        generator = torch.Generator().manual_seed(0)
        self.text = {
            name: torch.randn(each.shape, generator=generator).to(self.device, self.dtype)
            for name, each in blank.items()
        }
        self._memory = config.memory

    def memory(self) -> MemoryConfig:
        """What `fluxtune sample` plans."""
        request = self.requests[0]
        painting = Painting(
            base=self.base,
            memory=self._memory,
            dtype=self.dtype,
            size=(request.width, request.height),
            batch=1,
            led_away=False,
            started=False,
            lora_bytes=0,
            as_cuda=self.device == "cuda" or self._memory.budget is not None,
            capacity=self.capacity,
        )
        return fitted(painting, ignore)

    def pipeline(self, memory: MemoryConfig, device: str) -> Any:
        """The stock pipeline around parts that are held so."""
        family, dtype = self.base.family, self.dtype
        weights = random_weights(empty_transformer(family, self._config), self.device, dtype)
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(model_folder(), subfolder="scheduler")
        made = FluxPipeline(
            transformer=build_transformer(family, self._config, weights, memory, dtype, device, "random weights"),
            vae=vae(self.base, memory.vae_tiling, dtype, device),
            scheduler=scheduler,
            **dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")),
        )
        made.set_progress_bar_config(disable=True)
        return made

    def fits_plainly(self) -> bool:
        """Whether all of it in bf16 fits on the card."""
        if self.device != "cuda" or self.capacity is None:
            return True
        return transformer_bytes(self.base, PLAIN, self.dtype) + ROOM <= self.capacity

    @property
    def _config(self) -> Any:
        return transformer_config(self.base.family, self.base.folder)


def with_fluxtune(work: Work, figures: dict[str, Any]) -> Callable[[], Iterator[None]]:
    """Pictures as `fluxtune sample` makes them: each ``next`` is one."""
    memory = work.memory()
    figures["memory"] = memory.model_dump(mode="json", exclude={"budget", "keep"})
    pipeline = work.pipeline(memory, work.device)

    def pictures() -> Iterator[None]:
        with closing(looking_ahead(work.base, pipeline, work.requests, lambda _: work.text)) as requests:
            for request in requests:
                generate(work.base, pipeline, work.text, request)
                yield

    return pictures


def by_hand(work: Work, figures: dict[str, Any]) -> Callable[[], Iterator[None]]:
    """Pictures as a script of a few lines makes them."""
    whole = work.fits_plainly()
    figures["held"] = "bf16" if whole else "bf16, enable_sequential_cpu_offload"
    pipeline = work.pipeline(PLAIN, work.device if whole else "cpu")
    if not whole:
        pipeline.enable_sequential_cpu_offload()

    def pictures() -> Iterator[None]:
        for request in work.requests:
            pipeline(
                **work.text,
                width=request.width,
                height=request.height,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                generator=torch.Generator().manual_seed(request.seed),
            )
            yield

    return pictures


def measure(preset: str, scale: str, side: int, steps: int, number: int) -> dict[str, Any]:
    """One preset. Whatever goes wrong is part of the answer."""
    quiet_libraries()
    figures: dict[str, Any] = {"preset": preset, "scale": scale, "side": side, "steps": steps}
    work = Work(preset, scale, side, steps, number)
    figures["room_gib"] = None if work.capacity is None else round(work.capacity / GIB, 3)
    for name, kind in (("fluxtune", with_fluxtune), ("by hand", by_hand)):
        figures[name] = {}
        free_memory()
        if work.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        # The other way shall be measured all the same.
        try:
            _time(kind, work, figures[name])
        except Exception as error:
            figures[name]["failed"] = f"{type(error).__name__}: {error}"
    return figures


def _time(kind: Callable[..., Callable[[], Iterator[None]]], work: Work, figures: dict[str, Any]) -> None:
    begun = _now(work.device)
    pictures = kind(work, figures)
    figures["load_seconds"] = round(_now(work.device) - begun, 2)
    ends = [_now(work.device), *(_now(work.device) for _ in pictures())]
    seconds = [end - start for start, end in pairwise(ends)]
    # The first takes what is done once, too: it looks ahead, and the card warms up.
    figures |= {
        "first_seconds": round(seconds[0], 3),
        "seconds_a_picture": round(statistics.median(seconds[1:] or seconds), 3),
    }
    if work.device == "cuda":
        figures["allocated_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 3)


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", help=f"may be given again; by default {', '.join(PRESETS)}")
    parser.add_argument("--scale", choices=SCALES, default="dev", help="dev needs a graphics card")
    parser.add_argument("--side", type=int, default=1024, help="pixels (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="of denoising (%(default)s)")
    parser.add_argument("--pictures", type=int, default=4, help="the first is not counted (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("pictures.json"))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.scale, options.side, options.steps, options.pictures)))
        return
    if options.scale == "dev" and not torch.cuda.is_available():
        parser.error("torch finds no graphics card: `fluxtune doctor` says why; --scale tiny needs none")
    numbers = {"--side": options.side, "--steps": options.steps, "--pictures": options.pictures}
    asked = ["--scale", options.scale, *(str(part) for pair in numbers.items() for part in pair)]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu"
    told = {"device": device, "versions": versions()}
    report = {**heading(" ".join(["python benchmarks/pictures.py", *asked])), **told, "runs": []}
    for preset in options.preset or PRESETS:
        call = [sys.executable, __file__, "--measure", preset, *asked]
        done = subprocess.run(call, stdout=subprocess.PIPE, text=True)
        ended = {"preset": preset, "failed": f"the process ended with exit code {done.returncode}"}
        report["runs"].append(ended if done.returncode else json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(report["runs"][-1]), flush=True)
        write(report, options.output)


if __name__ == "__main__":
    main()
