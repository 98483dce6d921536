"""What memory and time it takes to write a LoRA into a model of full size, and to get it out again.

    python benchmarks/fusing.py --folder /mnt/scratch --output benchmarks/results/fusing.json

Writes random bf16 weights of FLUX.1-dev's shapes (24 GB, as shards in diffusers' layout) and a LoRA of every linear
layer of its blocks below the folder, runs `fluxtune export fuse` into each layout and `fluxtune export extract`, and
deletes everything. Every command is a process of its own, with the files evicted from the page cache before. Memory is
what only the process can give back (``RssAnon``, so Linux alone), its libraries included; pages of mapped files are the
system's to drop. ``--scale tiny`` runs the same on a small transformer.
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
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from own_memory import anonymous, watched
from random_files import Shapes, evict, write_base, write_shards
from random_run import SCALES
from report import heading, publish
from safetensors.torch import save_file

from fluxtune.cli.app import main as fluxtune
from fluxtune.environment.device import versions

RANK = 16


def write_lora(file: Path, shapes: Shapes) -> int:
    """A LoRA of random weights for every linear layer of the blocks; returns how many those are."""
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, shape in shapes.items():
        if len(shape) == 2 and "transformer_blocks." in name:
            layer = f"transformer.{name.removesuffix('.weight')}"
            for half, sides in (("A", (RANK, shape[1])), ("B", (shape[0], RANK))):
                tensors[f"{layer}.lora_{half}.weight"] = torch.randn(sides, generator=generator).mul_(0.05).bfloat16()
    save_file(tensors, file)
    return len(tensors) // 2


def run_once(arguments: Sequence[str]) -> dict[str, Any]:
    """A command of fluxtune, in this process: seconds, and MiB of memory at most."""
    before = anonymous()
    with watched() as seen, open(os.devnull, "w") as nobody, redirect_stdout(nobody):
        started = time.monotonic()
        code = fluxtune(list(arguments))
        seconds = time.monotonic() - started
    if code:
        raise RuntimeError(f"exit code {code} of fluxtune {' '.join(arguments)}")
    return {"seconds": seconds, "anonymous_peak_mib": round((before + seen["peak"]) / 2**20, 1)}


def in_own_process(arguments: Sequence[str]) -> dict[str, Any]:
    """``run_once`` in a new process."""
    call = [sys.executable, __file__, "--once", json.dumps(list(arguments))]
    done = subprocess.run(call, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(
    scale: str, folder: Path, run: Callable[[Sequence[str]], dict[str, Any]] = in_own_process
) -> dict[str, Any]:
    """All figures; the folder is empty again at the end.

    Args:
        run: gives the figures of one command, from its arguments.
    """
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        base, lora, made = (Path(temporary) / name for name in ("base", "lora.safetensors", "made.safetensors"))
        shapes = write_base(base, scale)
        size = sum(2 * torch.Size(shape).numel() for shape in shapes.values())
        write_shards(base, shapes)
        changed = write_lora(lora, shapes)

        def add(name: str, *arguments: str, output: Path) -> None:
            evict(Path(temporary))
            figures[name] = found = run(["export", *arguments, "--output", str(output)])
            files = [output] if output.is_file() else sorted((output / "transformer").glob("*.safetensors"))
            written = sum(file.stat().st_size for file in files)
            found |= {
                "seconds": round(found["seconds"], 2),
                "written_bytes": written,
                "base_bytes_a_second": round(size / found["seconds"]),
            }
            print(name, found, file=sys.stderr, flush=True)

        fuse = ["fuse", str(lora), "--base", str(base)]
        add("fuse, diffusers folder, bf16", *fuse, output=Path(temporary) / "fused")
        shutil.rmtree(Path(temporary) / "fused")
        add("fuse, single file, fp8", *fuse, "--format", "comfyui", "--dtype", "fp8", output=made)
        made.unlink()
        add("fuse, single file, bf16", *fuse, "--format", "comfyui", output=made)
        extract = ["extract", str(base), str(made), "--rank", str(RANK)]
        add("extract from the single file", *extract, output=Path(temporary) / "extracted.safetensors")
    return {"scale": scale, "base_bytes": size, "changed_layers": changed, "rank": RANK, "commands": figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="dev")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on a disk with 52 GB free")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--once", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(run_once(json.loads(options.once))))
        return
    report = {
        **heading(f"python benchmarks/fusing.py --scale {options.scale}"),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "versions": versions(),
        **measure(options.scale, options.folder),
    }
    publish(report, options.output)


if __name__ == "__main__":
    main()
