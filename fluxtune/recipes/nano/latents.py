"""The transformer's training pictures, painted and encoded once: packed latents, captions and token labels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from fluxtune.nano.painter import TOKEN, paint, token_labels
from fluxtune.nano.scenes import training_scene
from fluxtune.recipes.nano.progress import Budget, record, say
from fluxtune.recipes.nano.vae import pixels_of

# Shares of the scenes by (width, height): the square is what most people sample.
SHARES = {(128, 128): 0.76, (112, 144): 0.12, (144, 112): 0.12}
CHUNK = 40


@dataclass(frozen=True)
class Pool:
    """Scenes of one aspect ratio.

    `latents [scenes, tokens, 64]` half precision, normalised; `labels [scenes, tokens, 4]`: kind, colour,
    background kind and background colour; `captions`, one a scene.
    """

    width: int
    height: int
    latents: Tensor
    labels: Tensor
    captions: list[str]


def pack(latents: Tensor) -> Tensor:
    """`[batch, 16, height, width]` → `[batch, tokens, 64]`: 2 x 2 patches, as FLUX packs them."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, height // 2 * (width // 2), channels * 4)


def position_ids(width: int, height: int) -> Tensor:
    """`[tokens, 3]`: 0, row, column, for a picture of the given pixels."""
    rows, columns = height // TOKEN, width // TOKEN
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)
    return ids.view(-1, 3)


def encode_pools(work: Path, minutes: float, seed: int) -> None:
    """Paints and encodes as many scenes as the minutes allow into `work/latents`, some of each aspect ratio."""
    vae = AutoencoderKL.from_pretrained(work / "vae").eval().to(memory_format=torch.channels_last)
    (work / "latents").mkdir(exist_ok=True)
    counts = {}
    budget, spent = Budget(minutes), 0.0
    for (width, height), share in SHARES.items():
        spent += share
        latents, labels, captions = [], [], []
        while budget.fraction < spent:
            chunk_latents, chunk_labels, chunk_captions = _encode(vae, seed, len(captions), width, height)
            latents.append(chunk_latents)
            labels.append(chunk_labels)
            captions += chunk_captions
        counts[f"{width}x{height}"] = len(captions)
        say(f"latents {width}x{height}: {len(captions)} scenes")
        path = work / "latents" / f"{width}x{height}"
        np.save(path.with_suffix(".latents.npy"), torch.cat(latents).numpy())
        np.save(path.with_suffix(".labels.npy"), np.concatenate(labels))
        path.with_suffix(".captions.json").write_text(json.dumps(captions))
    record(work, "latents", seed=seed, minutes=budget.seconds / 60, scenes=counts)


@torch.inference_mode()
def _encode(
    vae: AutoencoderKL, seed: int, first: int, width: int, height: int
) -> tuple[Tensor, np.ndarray, list[str]]:
    scenes = [training_scene(seed, first + i, (width, height)) for i in range(CHUNK)]
    pixels = torch.stack([pixels_of(paint(scene)) for scene in scenes])
    mean = vae.encoder(pixels.contiguous(memory_format=torch.channels_last)).chunk(2, dim=1)[0]
    latents = pack((mean - vae.config.shift_factor) * vae.config.scaling_factor)
    labels = []
    for scene in scenes:
        of_tokens = token_labels(scene)
        tokens = of_tokens.kind.size
        labels.append(
            np.stack(
                (
                    of_tokens.kind.ravel(),
                    of_tokens.colour.ravel(),
                    np.full(tokens, of_tokens.background_kind),
                    np.full(tokens, of_tokens.background_colour),
                ),
                axis=1,
            )
        )
    return latents.half(), np.stack(labels).astype(np.uint8), [scene.caption for scene in scenes]


def load_pools(work: Path) -> list[Pool]:
    """The pools of `encode_pools`, in memory."""
    pools = []
    for width, height in SHARES:
        path = work / "latents" / f"{width}x{height}"
        latents = torch.from_numpy(np.load(path.with_suffix(".latents.npy")))
        labels = torch.from_numpy(np.load(path.with_suffix(".labels.npy")))
        pools.append(
            Pool(width, height, latents, labels, json.loads(path.with_suffix(".captions.json").read_text()))
        )
    return pools
