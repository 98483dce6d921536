"""Train the true FLUX.1-dev transformer, 11.9 billion random weights made in place, and measure a step.

    python benchmarks/full_size.py --preset 24gb --preset 80gb --steps 20 --output benchmarks/results/full_size.json

Writes seconds a step, peak memory and the share of the card's own matrix rate. ``--scale tiny`` runs the same code on
a small transformer, so that it can be tried anywhere.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import FluxTransformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from fluxtune import rng
from fluxtune.config.layers import resolve
from fluxtune.config.schema import Config
from fluxtune.environment.device import memory_in_use, pick_device, versions
from fluxtune.flux.families import FLUX1
from fluxtune.flux.load import build_transformer, free_memory
from fluxtune.flux.modulation import foreseen
from fluxtune.flux.weights import DTYPES
from fluxtune.lora.adapter import adapter_parameters, attach
from fluxtune.training.load import make_accelerator, recompute
from fluxtune.training.optimizers import make_optimizer
from fluxtune.training.step import Learner, MicroBatch, learn, update, velocity

SCALES = {
    "dev": {
        "num_layers": 19,
        "num_single_layers": 38,
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "axes_dims_rope": (16, 56, 56),
    },
    "tiny": {
        "num_layers": 2,
        "num_single_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (8, 12, 12),
    },
}
TEXT_TOKENS = 512
SAMPLES_AHEAD = 64


def transformer_config(scale: str) -> dict[str, Any]:
    """The complete config of a transformer of that scale, with a guidance embedding as FLUX.1-dev has it."""
    with init_empty_weights():
        return dict(FluxTransformer2DModel(in_channels=64, guidance_embeds=True, **SCALES[scale]).config)


def random_weights(config: dict[str, Any], device: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter of the transformer, drawn on the device, one at a time."""
    with init_empty_weights():
        shapes = {name: p.shape for name, p in FluxTransformer2DModel.from_config(config).named_parameters()}
    for name, shape in shapes.items():
        yield name, torch.randn(shape, device=device, dtype=torch.bfloat16) * 0.02


def micro_batch(config: dict[str, Any], side: int, batch: int, device: str, dtype: torch.dtype) -> MicroBatch:
    """Random latents of ``side`` x ``side`` pixels and random text."""
    shape = (batch, 64, side // 16, side // 16)
    text = {
        "prompt_embeds": torch.randn(batch, TEXT_TOKENS, config["joint_attention_dim"], device=device, dtype=dtype),
        "pooled_prompt_embeds": torch.randn(batch, config["pooled_projection_dim"], device=device, dtype=dtype),
    }
    noise = torch.randn(shape, device=device)
    return MicroBatch(torch.randn(shape, device=device), noise, torch.rand(batch, device=device), text)


def step_operations(config: dict[str, Any], settings: Config, side: int) -> int:
    """Operations of one training step (forward, recomputation, backward), counted on the meta device."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(config).to(torch.bfloat16)
    attach(transformer, settings.lora, FLUX1, 0)
    recompute(transformer, FLUX1, settings.memory)
    batch = micro_batch(config, side, settings.training.batch_size, "meta", torch.bfloat16)
    with FlopCounterMode(display=False) as counter:
        FLUX1.forward(
            transformer.train(), batch.latents.bfloat16(), batch.sigmas, batch.text, 1.0
        ).float().sum().backward()
    return counter.get_total_flops() * settings.training.accumulation


def matrix_rate(device: str) -> float:
    """Operations a second of a large bf16 matrix product, the best of a few: what the card can do at most."""
    side = 8192 if device == "cuda" else 512
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        started = _now(device)
        a @ b
        best = min(best, _now(device) - started)
    return 2 * side**3 / best


def measure(preset: str, scale: str, steps: int, side: int | None) -> dict[str, Any]:
    """Train ``steps`` steps as ``preset`` says; figures of the steady ones."""
    settings = resolve(preset=preset, config_file=None, flags={}, sets=[], working_folder=Path.cwd()).config
    side = side or max(settings.dataset.resolution)
    device, dtype = pick_device("auto"), DTYPES[settings.training.precision]
    config = transformer_config(scale)
    # What an earlier preset left in cycles would count as this one's.
    free_memory()
    _forget_peak(device)
    started = time.monotonic()
    transformer = build_transformer(
        FLUX1, config, random_weights(config, device), settings.memory, dtype, device, "random weights"
    )
    loaded, load_peak = time.monotonic() - started, memory_in_use(device)
    attach(transformer, settings.lora, FLUX1, rng.derive(0, "adapter"))
    recompute(transformer, FLUX1, settings.memory)
    parameters = list(adapter_parameters(transformer.train()).values())
    accelerator = make_accelerator(settings, device)
    optimizer = accelerator.prepare_optimizer(make_optimizer(parameters, settings.training))
    learner = Learner(FLUX1, transformer, optimizer, accelerator, parameters, dtype, 1.0, 1.0)
    batch = micro_batch(config, side, settings.training.batch_size, device, dtype)
    _forget_peak(device)

    def many_samples() -> None:
        for sigmas in (batch.sigmas, *torch.rand(SAMPLES_AHEAD - 1, *batch.sigmas.shape, device=device)):
            velocity(learner, replace(batch, sigmas=sigmas))

    seconds, begun = [], _now(device)
    with foreseen(transformer, many_samples):
        ahead = _now(device) - begun
        for _ in range(steps):
            begun = _now(device)
            for _ in range(settings.training.accumulation):
                learn(learner, batch)
            update(learner)
            seconds.append(_now(device) - begun)
    second = statistics.median(seconds[min(3, steps - 1) :])
    operations = step_operations(config, settings, side)
    return {
        "preset": preset,
        "scale": scale,
        "side": side,
        "base_precision": settings.memory.base_precision,
        "recompute": settings.memory.recompute,
        "modulation": settings.memory.modulation,
        "modulation_seconds_a_sample": round(ahead / SAMPLES_AHEAD, 4),
        "load_seconds": round(loaded, 1),
        "load_peak_gib": round(load_peak, 2),
        "step_seconds": round(second, 4),
        "peak_gib": round(memory_in_use(device), 2),
        "step_operations": operations,
        "share_of_matrix_rate": round(operations / second / matrix_rate(device), 3),
    }


def _forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", required=True)
    parser.add_argument("--scale", choices=SCALES, default="dev")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--side", type=int, help="pixels; by default the preset's resolution")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    report = {
        "date": date.today().isoformat(),
        "commit": commit,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "versions": versions(),
        "command": f"python benchmarks/full_size.py --scale {options.scale} --steps {options.steps}",
        "runs": [measure(preset, options.scale, options.steps, options.side) for preset in options.preset],
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n", encoding="utf-8")
