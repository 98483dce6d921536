"""What each precision of the frozen base costs in quality, on the embedded model, after trainings that are else equal.

    python benchmarks/precisions.py --steps 300 --seeds 1 2 3 --output benchmarks/results/precisions.json

The demo is trained with the base in each precision. Of each LoRA it measures, on the plain base model: the mean
flow-matching loss on pictures that no training saw, of the subject and of ordinary scenes, at noise that is the same
for all; and, as the demo does, the shares of pictures that show the subject, and all that ordinary prompts ask for. The
loss is also measured on the base as it was held in training, with the LoRA and without. What is done is kept in the
output, and the same command goes on from there; `--page docs/precisions.md` then puts the tables into that page.

bfloat16 is what the embedded model's weights are stored in, so `bf16` holds them whole; activations are float32 in all
of them. For 8-bit through bitsandbytes, the inputs of products are rounded to 8 bits as on a card.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.autograd._functions import MatMul8bitLt

from fluxtune.captioning.missing import caption_bare
from fluxtune.config.layers import resolve
from fluxtune.config.schema import Config
from fluxtune.dataset.images import to_pixels
from fluxtune.environment.device import quiet_libraries, versions
from fluxtune.files import write_json, write_text
from fluxtune.flux.base import Base, open_base
from fluxtune.flux.denoise import encode_prompt
from fluxtune.flux.load import load_text_pipeline, load_transformer, load_vae
from fluxtune.flux.objective import flow_matching_loss, interpolate, velocity_target
from fluxtune.lora.adapter import attach, start_from
from fluxtune.lora.reading import read_start
from fluxtune.memory.eight_bit import FrozenLinear8bit
from fluxtune.memory.quantize import is_quantized, quantized_linear
from fluxtune.nano import model_folder
from fluxtune.nano.painter import paint
from fluxtune.nano.scenes import Scene, held_out_prompts, object_scene, subject_scene
from fluxtune.recipes.demo import score_pipeline
from fluxtune.recipes.nano.measure import open_pipeline
from fluxtune.training.run import train

HELD = {"bf16": "fp32", "int8-weights": "int8-weights", "int8": "int8", "fp8": "fp8", "nf4": "nf4"}
"""Precision -> what `memory.base_precision` says for it here."""
WIDTHS = (144, 3072)
"""Of the rows of most layers, in the embedded model and in FLUX.1-dev."""
SEED = 101
"""Of the held-out pictures and their noise; the demo data set has another."""


@dataclass(frozen=True)
class HeldOut:
    """Pictures that no training saw, at noise levels that are spread evenly over (0, 1)."""

    latents: torch.Tensor
    noise: torch.Tensor
    sigmas: torch.Tensor
    text: dict[str, torch.Tensor]


def held_out(scenes: list[Scene], base: Base, config: Config) -> HeldOut:
    """Scenes of one size, encoded as training encodes its own."""
    vae, encoders = load_vae(base, torch.float32, "cpu"), load_text_pipeline(base, config.memory, torch.float32, "cpu")
    generator = torch.Generator().manual_seed(SEED)
    pixels = torch.stack([to_pixels(paint(scene)) for scene in scenes])
    with torch.no_grad():
        latents = base.family.encode_image(vae, pixels, generator)
    texts = [encode_prompt(base, encoders, scene.caption) for scene in scenes]
    text = {name: torch.cat([each[name] for each in texts]) for name in texts[0]}
    # A step that has no common factor with their number takes noise levels and scenes apart.
    order = torch.arange(len(scenes)) * 7 % len(scenes)
    return HeldOut(latents, torch.randn(latents.shape, generator=generator), (order + 0.5) / len(scenes), text)


@torch.no_grad()
def loss_of(transformer: Any, scenes: HeldOut, base: Base, config: Config) -> float:
    """The mean loss that training minimises."""
    noisy = interpolate(scenes.latents, scenes.noise, scenes.sigmas)
    velocity = base.family.forward(transformer, noisy, scenes.sigmas, scenes.text, config.training.guidance)
    return round(float(flow_matching_loss(velocity, velocity_target(scenes.latents, scenes.noise))), 6)


@contextmanager
def products_as_on_a_card() -> Iterator[None]:
    """Inside, 8-bit layers of bitsandbytes take the way of cards: on a processor they round weights only."""
    on_a_processor = FrozenLinear8bit.product

    def product(layer: FrozenLinear8bit, x: torch.Tensor) -> torch.Tensor:
        if layer.state.CB is None:
            layer.init_8bit_state()
        result: torch.Tensor = MatMul8bitLt.apply(x, layer.weight, None, layer.bias, layer.state)
        return result.to(x.dtype)

    FrozenLinear8bit.product = product  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        FrozenLinear8bit.product = on_a_processor  # type: ignore[method-assign, assignment]


class Comparison:
    """Trainings that differ in the precision of the base alone, and what is measured of them."""

    def __init__(self, steps: int, prompts: int, pictures: int, work: Path) -> None:
        self.steps, self.prompts, self.work = steps, prompts, work
        config = self.config("bf16", 0)
        self.base = open_base(config.model)
        ordinary = [object_scene(prompt, SEED, index) for index, prompt in enumerate(held_out_prompts(pictures))]
        self.sets = {
            "subject": held_out([subject_scene(SEED, index) for index in range(pictures)], self.base, config),
            "scenes": held_out(ordinary, self.base, config),
        }

    def config(self, precision: str, seed: int) -> Config:
        """The demo's settings, with another number of steps."""
        sets = [f"training.steps={self.steps}", f"memory.base_precision={HELD[precision]}", f"training.seed={seed}"]
        return resolve(
            preset="nano",
            config_file=None,
            flags={},
            sets=[*sets, "previews.every=0", "checkpoints.every=0"],
            working_folder=self.work,
        ).config

    def losses(self, precision: str, lora: Path | None) -> dict[str, float]:
        """Of the base held so, with a LoRA or without."""
        config = self.config(precision, 0)
        transformer = load_transformer(self.base, config.memory, torch.float32, "cpu")
        if lora:
            attach(transformer, config.lora, self.base.family, 0)
            start_from(transformer, read_start(lora), config.lora, self.base.family, str(lora))
        return {name: loss_of(transformer, scenes, self.base, config) for name, scenes in self.sets.items()}

    def run(self, precision: str, seed: int) -> dict[str, Any]:
        """Trains and measures."""
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            lora = train(self.config(precision, seed), output=Path(folder) / "run", caption_bare=caption_bare).file
            seconds = time.perf_counter() - started
            pipeline = open_pipeline(model_folder())
            pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
            subject, ordinary, leaked = score_pipeline(pipeline, [seed], self.prompts)
            return {
                "precision": precision,
                "seed": seed,
                "training_seconds": round(seconds, 1),
                "subject_score": round(subject, 4),
                "ordinary_score": round(ordinary, 4),
                "leaked": round(leaked, 4),
                "loss": self.losses("bf16", lora),
                "loss_as_trained": self.losses(precision, lora),
            }


def weight_errors(width: int) -> dict[str, float]:
    """How far weights of a normal distribution in rows of ``width`` are moved, root mean square against their own."""
    layer = torch.nn.Linear(width, 256, bias=False)
    weight = torch.randn(256, width, generator=torch.Generator().manual_seed(SEED))
    identity = torch.eye(width)
    errors: dict[str, float] = {}
    for precision in list(HELD)[1:]:
        assert is_quantized(precision)
        seen = quantized_linear(layer, weight, precision, torch.float32, "cpu")(identity).T
        errors[precision] = round(float((seen - weight).norm() / weight.norm()), 5)
    return errors


def tables_of(figures: dict[str, Any]) -> list[str]:
    """The base models alone, the trainings, and the weights, as Markdown."""
    bases, runs = figures["bases"], figures["runs"]
    alone = [
        [
            f"`{name}`",
            *(f"{bases[name][kind]:.4f}" for kind in ("scenes", "subject")),
            _change(bases[name], bases["bf16"]),
        ]
        for name in bases
    ]
    trained = []
    for name in HELD:
        own = [run for run in runs if run["precision"] == name]
        if own:
            losses = [("loss", "scenes"), ("loss", "subject"), ("loss_as_trained", "subject")]
            spread = [_spread([run[where][kind] for run in own], 4) for where, kind in losses]
            shares = [_spread([100 * run[kind] for run in own], 0) for kind in ("subject_score", "ordinary_score")]
            trained.append([f"`{name}`", str(len(own)), *spread, *shares])
    errors = figures["weight_errors"]
    moved = [[f"`{name}`", *(f"{errors[width][name]:.2%}" for width in errors)] for name in list(HELD)[1:]]
    kinds = ("loss on ordinary scenes", "loss on the subject")
    shares_of = ("subject, %", "ordinary prompts, %")
    return [
        _table(["base held in", *kinds, "both, against bf16"], alone),
        _table(["base held in", "trainings", *kinds, "subject, on the base as trained", *shares_of], trained),
        _table(["weights held in", *(f"rows of {width}" for width in errors)], moved),
    ]


def _change(losses: dict[str, float], plain: dict[str, float]) -> str:
    return f"{sum(losses.values()) / sum(plain.values()) - 1:+.1%}"


def _spread(values: list[float], digits: int) -> str:
    """Mean and standard deviation over seeds."""
    mean = statistics.mean(values)
    return f"{mean:.{digits}f} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else f"{mean:.{digits}f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_tables(page: str, tables: list[str]) -> str:
    """The page with its tables, as many, replaced in their order."""
    new = iter(tables)
    return re.sub(r"(?m)(?:^\|.*\|\n)+", lambda _: f"{next(new)}\n", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1100, help="of each training; the demo has 1100")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3], help="of trainings; none: the bases alone")
    parser.add_argument("--prompts", type=int, default=60, help="of either sort, for the shares of pictures")
    parser.add_argument("--pictures", type=int, default=128, help="of either sort, for the losses")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--page", type=Path, help="put the tables into this page")
    options = parser.parse_args()
    quiet_libraries()
    settings = {"steps": options.steps, "prompts": options.prompts, "pictures": options.pictures}
    figures: dict[str, Any] = {"settings": settings, "runs": []}
    if options.output.exists():
        figures = json.loads(options.output.read_text(encoding="utf-8"))
        if figures["settings"] != settings:
            parser.error(f"{options.output} was begun with {figures['settings']}: name another file")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    done = {(run["precision"], run["seed"]) for run in figures["runs"]}
    with tempfile.TemporaryDirectory() as work, products_as_on_a_card():
        comparison = Comparison(options.steps, options.prompts, options.pictures, Path(work))
        figures["bases"] = {precision: comparison.losses(precision, None) for precision in HELD}
        figures["weight_errors"] = {str(width): weight_errors(width) for width in WIDTHS}
        figures |= {"date": date.today().isoformat(), "cores": os.cpu_count(), "versions": versions()}
        write_json(options.output, figures)
        for precision, seed in ((each, seed) for seed in options.seeds for each in HELD):
            if (precision, seed) not in done:
                figures["runs"].append(comparison.run(precision, seed))
                write_json(options.output, figures)
                print(json.dumps(figures["runs"][-1]), flush=True)
    tables = tables_of(figures)
    print("\n\n".join(tables))
    if options.page:
        write_text(options.page, with_tables(options.page.read_text(encoding="utf-8"), tables))


if __name__ == "__main__":
    main()
