"""Captions that `fluxtune caption` writes a second, against the captioner's bare `generate` and nothing else.

    python benchmarks/captioning.py --pictures 256 --output benchmarks/results/captioning.json

Both sides caption the same pictures with the embedded captioner, in batches of the same size. The bare side gets its
pixels ready made and its words undecoded; the command's side reads, decodes and prepares the pictures, words the
captions, notes them in the journal and writes each file. The runs alternate and the medians count.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from report import heading, publish

from fluxtune.captioning.load import Loaded, load_model
from fluxtune.captioning.run import caption
from fluxtune.config.schema import Config
from fluxtune.events import ignore
from fluxtune.nano import captioner_folder
from fluxtune.nano.painter import paint
from fluxtune.nano.scenes import training_scene

TOKENS, BEAMS = 50, 3
"""As the command asks BLIP."""


def make_pictures(folder: Path, count: int) -> list[Image.Image]:
    """Painted pictures of 256 px and about, as files and in memory."""
    pictures = [paint(training_scene(9, index), scale=2) for index in range(count)]
    for index, picture in enumerate(pictures):
        picture.save(folder / f"{index:05d}.png")
    return pictures


def bare(loaded: Loaded, batches: list[torch.Tensor]) -> None:
    """The model's own loop over pixels that lie ready."""
    with torch.inference_mode():
        for pixels in batches:
            loaded.model.generate(pixel_values=pixels, max_new_tokens=TOKENS, num_beams=BEAMS, do_sample=False)


def command(folder: Path, batch_size: int) -> None:
    """What the command does, files included; captions of an earlier round are written over."""
    config = Config.model_validate(
        {
            "dataset": {"folders": [{"path": str(folder)}], "trigger": "zorvex", "class_word": "critter"},
            "captioning": {"captioner": "nano", "existing": "overwrite", "batch_size": batch_size},
        }
    )
    outcome = caption(config, ignore)
    assert outcome.counts["written"] == outcome.pictures


def seconds_of(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(count: int, batch_size: int, rounds: int) -> dict[str, Any]:
    """Captions a second either way, and how many times as long the command takes."""
    loaded = load_model(captioner_folder(), "fp32", "cpu")
    with tempfile.TemporaryDirectory() as temporary:
        pictures = make_pictures(Path(temporary), count)
        batches = [
            loaded.processor(images=pictures[start : start + batch_size], return_tensors="pt")["pixel_values"]
            for start in range(0, count, batch_size)
        ]
        command(Path(temporary), batch_size)  # what is loaded once in a process
        taken: dict[str, list[float]] = {"generate": [], "caption": []}
        for _ in range(rounds):
            taken["generate"].append(seconds_of(lambda: bare(loaded, batches)))
            taken["caption"].append(seconds_of(lambda: command(Path(temporary), batch_size)))
    alone, whole = (statistics.median(taken[name]) for name in ("generate", "caption"))
    return {
        "pictures": count,
        "batch_size": batch_size,
        "generated_a_second": round(count / alone, 2),
        "captioned_a_second": round(count / whole, 2),
        "times_as_long": round(whole / alone, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    figures = {
        **heading(
            f"python benchmarks/captioning.py --pictures {options.pictures} --batch-size {options.batch_size} "
            f"--rounds {options.rounds}"
        ),
        "device": "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **measure(options.pictures, options.batch_size, options.rounds),
    }
    publish(figures, options.output)


if __name__ == "__main__":
    main()
