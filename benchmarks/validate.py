"""Pictures that `fluxtune validate` reads a second, against decoding the same files and nothing else.

    python benchmarks/validate.py --pictures 300 --output benchmarks/results/validate.json

Both run in as many threads; the runs alternate and the medians count. The pictures are many
photographs beside each other, as JPEGs of 12 and 2 megapixels, what a phone and a web page give.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import PIL
import skimage.data
from PIL import Image
from report import heading, publish

from fluxtune.config.dataset import FolderConfig
from fluxtune.config.schema import Config
from fluxtune.dataset.caption_checks import ESTIMATES
from fluxtune.dataset.validation import validate
from fluxtune.events import ignore

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
SIZES = {"12 megapixels": (4000, 3000), "2 megapixels": (1632, 1224)}


def make_pictures(folder: Path, number: int, size: tuple[int, int]) -> None:
    """Different JPEGs of that size with captions: photographs beside and above each other, each at its own scale."""
    folder.mkdir(parents=True)
    photographs = [Image.fromarray(getattr(skimage.data, name)()) for name in PHOTOGRAPHS]
    for index in range(number):
        draw = random.Random(index)
        picture = Image.new("RGB", size)
        for top in range(0, size[1], 400):
            for left in range(0, size[0], 400):
                part = draw.choice(photographs)
                scale = draw.uniform(1, 1.5)
                part = part.resize((round(part.width * scale), round(part.height * scale)), Image.Resampling.BICUBIC)
                picture.paste(part, (left, top))
        picture.save(folder / f"{index:05d}.jpg", quality=90)
        (folder / f"{index:05d}.txt").write_text(f"picture {index}")


def decode_all(folder: Path, threads: int) -> None:
    """The plain loop: every picture decoded to pixels."""

    def decode(path: Path) -> None:
        with Image.open(path) as image:
            image.load()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode, sorted(folder.glob("*.jpg"))))


def validate_all(folder: Path) -> None:
    """All checks, as the command runs them."""
    config = Config.model_validate({"dataset": {"folders": [FolderConfig(path=str(folder))]}})
    report = validate(config, ESTIMATES, 16, ignore)
    assert len(report.pictures) == len(list(folder.glob("*.jpg")))


def measure(number: int, size: tuple[int, int], rounds: int, threads: int) -> dict[str, Any]:
    """Pictures a second either way, and how many times as long validation takes."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "pictures"
        make_pictures(folder, number, size)
        seconds: dict[str, list[float]] = {"decode": [], "validate": []}
        for _ in range(rounds):
            for name, work in (
                ("decode", lambda: decode_all(folder, threads)),
                ("validate", lambda: validate_all(folder)),
            ):
                started = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - started)
    decoded, validated = (statistics.median(seconds[name]) for name in ("decode", "validate"))
    return {
        "pictures": number,
        "size": list(size),
        "decoded_a_second": round(number / decoded, 2),
        "validated_a_second": round(number / validated, 2),
        "times_as_long": round(validated / decoded, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    threads = min(4, os.cpu_count() or 1)
    figures = {
        **heading(f"python benchmarks/validate.py --pictures {options.pictures} --rounds {options.rounds}"),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "pillow": PIL.__version__,
        **{name: measure(options.pictures, size, options.rounds, threads) for name, size in SIZES.items()},
    }
    publish(figures, options.output)


if __name__ == "__main__":
    main()
