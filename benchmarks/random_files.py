"""Random weights of FLUX.1-dev's size in files, in diffusers' layout and as ComfyUI's one file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from random_run import base_of

from fluxtune.flux.empty import transformer_config
from fluxtune.flux.families import FLUX1
from fluxtune.flux.flux1_names import NAMES
from fluxtune.nano import model_folder

Shapes = Mapping[str, tuple[int, ...]]
SHARDS = 3
"""As FLUX.1-dev on the hub has them."""


def write_random(file: Path, shapes: Shapes) -> None:
    """A safetensors file of random bf16 tensors, written as they are made."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    pool = torch.randn(2**22, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16().view(torch.uint8)
    with open(file, "wb") as output:
        output.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            left = 2 * torch.Size(shape).numel()
            # Another part of the pool for each run of values: no two layers are the same.
            while left:
                start = 2 * int(torch.randint(len(pool) // 4, ()))
                left -= output.write(pool[start : start + min(left, len(pool) // 2)].numpy().tobytes())


def bfl_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The shapes of the same transformer as ComfyUI's files have it."""
    made: dict[str, tuple[int, ...]] = {}
    for name, to in NAMES["transformer"].layers.items():
        for number in range(len(shapes) if "{}" in name else 1):
            parts = [each.format(number) for each in to]
            for leaf in ("weight", "bias"):
                if f"{parts[0]}.{leaf}" in shapes:
                    each = [shapes[f"{part}.{leaf}"] for part in parts]
                    named = "scale" if "_norm" in name else leaf
                    made[f"{name.format(number)}.{named}"] = (sum(shape[0] for shape in each), *each[0][1:])
    return made


def write_base(folder: Path, scale: str) -> dict[str, tuple[int, ...]]:
    """A base whose transformer has no weights yet, the rest of it being nano's; the shapes of those weights."""
    shutil.copytree(model_folder(), folder, ignore=shutil.ignore_patterns("diffusion_pytorch_model.safetensors"))
    shutil.copy(model_folder() / "vae" / "diffusion_pytorch_model.safetensors", folder / "vae")
    config = transformer_config(FLUX1, base_of(scale).folder)
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(config)
    return {name: tuple(parameter.shape) for name, parameter in transformer.named_parameters()}


def write_shards(folder: Path, shapes: Shapes) -> None:
    """The weights as diffusers has them."""
    names = list(shapes)
    of_shard = -(-len(names) // SHARDS)
    weight_map = {}
    for number in range(SHARDS):
        file = f"diffusion_pytorch_model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        held = names[number * of_shard : (number + 1) * of_shard]
        write_random(folder / "transformer" / file, {name: shapes[name] for name in held})
        weight_map.update(dict.fromkeys(held, file))
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def evict(folder: Path) -> None:
    """Ask the system to forget what it holds of files, so that the next read is from the disk."""
    for file in folder.rglob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
