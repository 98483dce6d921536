"""How fast the cache is filled and read, against the encoders alone.

    python benchmarks/caching.py --pictures 64 --output benchmarks/results/caching.json

Pictures: `fluxtune train`'s own way from JPEG files of 2 megapixels to latents on disk, against the bare VAE on tensors
that were decoded before, one at a time both; the VAE of `nano` and a random one of middle size. Captions: the way to
embeddings on disk, against the bare text encoders of `nano`. Both ways load their encoder; they alternate, and the
medians count. Store: ten thousand entries from no encoder at all, as large as latents of 512 px: how long the check of
all checksums takes, how long a read, and what memory they hold beside mapped files.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL
import psutil
import torch
from diffusers import AutoencoderKL
from report import heading, publish

from fluxtune import rng
from fluxtune.config.dataset import FolderConfig
from fluxtune.config.model import ModelConfig
from fluxtune.config.schema import Config
from fluxtune.dataset.buckets import plan
from fluxtune.dataset.cache import Store, key_of
from fluxtune.dataset.images import fit, open_image, to_pixels
from fluxtune.dataset.pictures import read_folders
from fluxtune.environment.device import versions
from fluxtune.events import ignore
from fluxtune.flux.base import Base, open_base
from fluxtune.flux.denoise import encode_prompt
from fluxtune.flux.load import load_text_pipeline, load_vae
from fluxtune.training.encode import encode_captions, encode_pictures
from fluxtune.training.examples import Prepared, examples_of, text_keys_of

SIDE = 256
MIDDLE = {"block_out_channels": [32, 64, 128, 128], "layers_per_block": 2, "norm_num_groups": 32}
"""Of the VAE of middle size: a quarter of the channels of FLUX.1's."""


def median_seconds(rounds: int, **works: Callable[[], None]) -> dict[str, float]:
    """Of each work, taken in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(each) for name, each in seconds.items()}


def with_vae(base: Base, folder: Path, **sizes: Any) -> Base:
    """The base with a random VAE of these sizes in the folder; nothing else of it is there."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.1159,
        scaling_factor=0.3611,
        **sizes,
    )
    vae.save_pretrained(folder / "vae")
    return replace(base, folder=folder)


def empty_stores(folder: Path) -> Prepared:
    """A cache of its own with nothing in it."""
    latents, masks, texts, priors = (Store(Path(tempfile.mkdtemp(dir=folder))) for _ in range(4))
    return Prepared([], latents, masks, texts, {}, priors, {})


def measure_pictures(base: Base, config: Config, folder: Path, rounds: int) -> dict[str, Any]:
    """Pictures a second either way."""
    pictures = read_folders(config.dataset, ignore)
    buckets = plan([picture.size for picture in pictures], config.dataset)
    examples = list(examples_of(config, base, pictures, buckets, torch.float32, "cpu"))
    decoded = [
        to_pixels(fit(open_image(each.picture.path, config.dataset.background), each.width, each.height))[None]
        for each in examples
    ]

    def cached() -> None:
        encode_pictures(empty_stores(folder), examples, config, base, torch.float32, "cpu", ignore)

    def bare() -> None:
        vae = load_vae(base, torch.float32, "cpu")
        with torch.no_grad():
            for number, pixels in enumerate(decoded):
                base.family.encode_image(vae, pixels, rng.generator(0, number))

    cached()
    seconds = median_seconds(rounds, cached=cached, bare=bare)
    return {
        "pictures": len(examples),
        "cached_a_second": round(len(examples) / seconds["cached"], 2),
        "bare_vae_a_second": round(len(examples) / seconds["bare"], 2),
        "times_as_long": round(seconds["cached"] / seconds["bare"], 3),
    }


def measure_captions(base: Base, config: Config, folder: Path, number: int, rounds: int) -> dict[str, Any]:
    """Captions a second either way."""
    captions = [f"a red star, {index}" for index in range(number)]
    keys = text_keys_of(config, base, captions, torch.float32, "cpu")

    def cached() -> None:
        stores = replace(empty_stores(folder), text_keys=keys)
        encode_captions(stores, captions, config, base, torch.float32, "cpu", ignore)

    def bare() -> None:
        pipeline = load_text_pipeline(base, config.memory, torch.float32, "cpu")
        for caption in captions:
            encode_prompt(base, pipeline, caption)

    cached()
    seconds = median_seconds(rounds, cached=cached, bare=bare)
    return {
        "captions": number,
        "cached_a_second": round(number / seconds["cached"], 1),
        "bare_encoders_a_second": round(number / seconds["bare"], 1),
        "times_as_long": round(seconds["cached"] / seconds["bare"], 3),
    }


def measure_store(folder: Path, number: int) -> dict[str, Any]:
    """Many entries: written, checked by another process's view of them, and read in any order."""
    process, latents = psutil.Process(), torch.randn(64, 32, 32)
    keys = [key_of(index) for index in range(number)]
    before, most = held(process), 0

    def note() -> None:
        nonlocal most
        most = max(most, held(process) - before)

    started = time.perf_counter()
    with Store(folder).writing() as write:
        for index, key in enumerate(keys):
            write(key, {"latents": latents + index})
            note()
    written = time.perf_counter()
    store = Store(folder)
    lacking = store.missing(keys)
    checked = time.perf_counter()
    assert not lacking
    for key in random.Random(0).sample(keys, number):
        store.read(key)
        note()
    read = time.perf_counter()
    shards = list(folder.iterdir())
    return {
        "entries": number,
        "gib": round(sum(shard.stat().st_size for shard in shards) / 2**30, 3),
        "shards": len(shards),
        "open_files": len(process.open_files()),
        "most_mib_held": round(most / 2**20),
        "write_seconds": round(written - started, 2),
        "check_seconds": round(checked - written, 2),
        "milliseconds_a_read": round(1000 * (read - checked) / number, 3),
    }


def held(process: psutil.Process) -> int:
    """Bytes of memory that only this process can give back: not the mapped files."""
    memory = process.memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


def measure(pictures: int, captions: int, entries: int, rounds: int, size: tuple[int, int]) -> dict[str, Any]:
    """All figures."""
    spec = importlib.util.spec_from_file_location("validate", Path(__file__).with_name("validate.py"))
    assert spec is not None and spec.loader is not None
    validate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(validate)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # First, while the process holds no memory that others gave back to it.
        store = measure_store(folder / "store", entries)
        validate.make_pictures(folder / "pictures", pictures, size)
        rows = [FolderConfig(path=str(folder / "pictures"))]
        config = Config.model_validate(
            {"dataset": {"folders": rows, "resolution": [SIDE]}, "memory": {"text_precision": "fp32"}}
        )
        nano = open_base(ModelConfig(base="nano"))
        middle = with_vae(nano, folder / "middle", **MIDDLE)
        return {
            "pictures, VAE of nano": measure_pictures(nano, config, folder, rounds),
            "pictures, VAE of middle size": measure_pictures(middle, config, folder, rounds),
            "captions": measure_captions(nano, config, folder, captions, rounds),
            "store": store,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    figures = {
        **heading(
            f"python benchmarks/caching.py --pictures {options.pictures} --captions {options.captions} "
            f"--entries {options.entries} --rounds {options.rounds}"
        ),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "pillow": PIL.__version__,
        **versions(),
        **measure(options.pictures, options.captions, options.entries, options.rounds, (1632, 1224)),
    }
    publish(figures, options.output)


if __name__ == "__main__":
    main()
