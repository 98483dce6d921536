"""How long a base model takes to load, and what memory the process needs beside it.

    python benchmarks/loading.py --folder /mnt/scratch --output benchmarks/results/loading.json

Writes random bf16 weights of FLUX.1-dev's shapes (24 GB) below the folder, as shards in diffusers' layout and as one
file in ComfyUI's, loads each held in 8 and in 4 bits, and deletes them. Every load is a process of its own, with the
files evicted from the page cache before. Memory is what only the process can give back (``RssAnon``, so Linux alone),
above what it had before the load. ``--scale tiny`` runs the same code on a small transformer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes  # noqa: F401  (imported here, not while a load is measured)
import torch
from own_memory import watched
from random_files import bfl_shapes, evict, write_base, write_random, write_shards
from random_run import SCALES
from report import heading, publish
from torch import nn
from transformers import T5EncoderModel  # noqa: F401  (the same)

from fluxtune.config.memory import MemoryConfig
from fluxtune.config.model import ModelConfig
from fluxtune.environment.device import pick_device, versions
from fluxtune.flux.base import open_base
from fluxtune.flux.load import load_transformer
from fluxtune.memory.quantize import QuantizedPrecision, packed_tensors

PRECISIONS = ("int8", "nf4")


def weight_bytes(transformer: nn.Module, precision: QuantizedPrecision) -> int:
    """Bytes of all weights as they are held."""
    linears = {path: layer for path, layer in transformer.named_modules() if isinstance(layer, nn.Linear)}
    quantised: dict[str, nn.Module] = {
        f"{path}.weight": layer for path, layer in linears.items() if type(layer) is not nn.Linear
    }
    packed = sum(tensor.nbytes for layer in quantised.values() for tensor in packed_tensors(layer, precision).values())
    return packed + sum(each.nbytes for name, each in transformer.named_parameters() if name not in quantised)


def load_once(settings: dict[str, Any]) -> dict[str, Any]:
    """Load the transformer as the settings say, in this process: seconds and MiB."""
    base = open_base(ModelConfig(**settings["model"]))
    memory = MemoryConfig(base_precision=settings["precision"], cache_quantized=settings["kept"])
    device = pick_device("auto")
    with watched() as seen:
        started = time.monotonic()
        transformer = load_transformer(base, memory, torch.bfloat16, device)
        seconds = time.monotonic() - started
    weights = weight_bytes(transformer, settings["precision"])
    # From the cache, a processor's weights are pages of its files, which count for no process.
    held = weights if device == "cpu" and seen["after"] > weights // 2 else 0
    figures = {
        "seconds": round(seconds, 1),
        "weights_mib": _mib(weights),
        "anonymous_peak_mib": _mib(seen["peak"]),
        "beside_weights_mib": _mib(seen["peak"] - held),
    }
    if device == "cuda":
        figures["device_peak_mib"] = _mib(torch.cuda.max_memory_allocated())
    return figures


def _mib(size: int) -> float:
    return round(size / 2**20, 2)


def in_own_process(settings: dict[str, Any], cache: Path) -> dict[str, Any]:
    """``load_once`` in a new process."""
    call = [sys.executable, __file__, "--load", json.dumps(settings)]
    done = subprocess.run(call, env={**os.environ, "FLUXTUNE_CACHE": str(cache)}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(
    scale: str, folder: Path, load: Callable[[dict[str, Any], Path], dict[str, Any]] = in_own_process
) -> dict[str, Any]:
    """All figures; the folder is empty again at the end.

    Args:
        load: gives the figures of one load, from its settings and the cache's folder.
    """
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        base, cache = Path(temporary) / "base", Path(temporary) / "cache"

        def add(name: str, **settings: Any) -> None:
            evict(Path(temporary))
            figures[name] = load(settings, cache)
            print(name, figures[name], file=sys.stderr, flush=True)

        shapes = write_base(base, scale)
        write_shards(base, shapes)
        for precision in PRECISIONS:
            model = {"base": str(base)}
            add(f"{precision}, shards, into the cache", model=model, precision=precision, kept=True)
            add(f"{precision}, from the cache", model=model, precision=precision, kept=True)
            shutil.rmtree(cache, ignore_errors=True)
        for shard in (base / "transformer").glob("*.safetensors*"):
            shard.unlink()
        file = base / "flux1-dev.safetensors"
        write_random(file, bfl_shapes(shapes))
        for precision in PRECISIONS:
            model = {"base": str(base), "transformer": str(file)}
            add(f"{precision}, one file", model=model, precision=precision, kept=False)
    bf16 = _mib(sum(2 * torch.Size(shape).numel() for shape in shapes.values()))
    return {"scale": scale, "bf16_mib": bf16, "loads": figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="dev")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on a disk with 40 GB free")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(json.dumps(load_once(json.loads(options.load))))
        return
    report = {
        **heading(f"python benchmarks/loading.py --scale {options.scale}"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "versions": versions(),
        **measure(options.scale, options.folder),
    }
    publish(report, options.output)


if __name__ == "__main__":
    main()
