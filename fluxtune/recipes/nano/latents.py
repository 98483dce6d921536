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
from fluxtune.nano.scenes import ALL_THINGS, MOSTLY_CRITTERS, Mix, training_scene
from fluxtune.recipes.nano.progress import COMPUTE, Budget, record, say
from fluxtune.recipes.nano.vae import pixels_of
from fluxtune.recipes.nano.workers import rank, wait_for_all, world

ASPECTS = ((128, 128), (112, 144), (144, 112))
# The square is what most people sample: the other two aspect ratios take one part in eight each.
ORDER = tuple(ASPECTS[i] for i in (0, 0, 1, 0, 0, 0, 2, 0))
CHUNK, PART = 40, 1000


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


def encode_all_things(work: Path, minutes: float, seed: int) -> None:
    """The scenes of the transformer's first schooling, into `work/latents`."""
    encode_pools(work, minutes, seed, "latents", ALL_THINGS)


def encode_critters(work: Path, minutes: float, seed: int) -> None:
    """The scenes of its second schooling, into `work/critter-latents`: critters for the most part, many of them small.

    They have more detail than anything else in the pictures, and a mascot to be learned is one of them.
    """
    encode_pools(work, minutes, seed, "critter-latents", MOSTLY_CRITTERS)


def encode_pools(work: Path, minutes: float, seed: int, name: str, mix: Mix) -> None:
    """Paints and encodes as many scenes as the minutes allow into files of the folder `name`, after those there."""
    vae = AutoencoderKL.from_pretrained(work / "vae").eval().to(memory_format=torch.channels_last)
    folder = work / name
    folder.mkdir(exist_ok=True)
    budget = Budget(minutes)
    part = len(list(folder.glob("*.json"))) + rank()
    wait_for_all()
    while budget.fraction < 1:
        width, height = ORDER[part % len(ORDER)]
        parts = [_encode(vae, seed, part * PART + i, width, height, mix) for i in range(0, PART, CHUNK)]
        path = folder / f"{width}x{height}-{part:04d}"
        np.save(path.with_suffix(".latents.npy"), np.concatenate([latents for latents, _, _ in parts]))
        np.save(path.with_suffix(".labels.npy"), np.concatenate([labels for _, labels, _ in parts]))
        captions = [caption for _, _, captions in parts for caption in captions]
        path.with_suffix(".captions.json").write_text(json.dumps(captions))
        part += world()
        say(f"latents: {part * PART} scenes {100 * budget.fraction:.0f} %")
    wait_for_all()
    if rank() == 0:
        scenes = PART * len(list(folder.glob("*.json")))
        record(work, name, seed=seed, minutes=budget.seconds / 60, scenes=scenes)


@torch.inference_mode()
def _encode(
    vae: AutoencoderKL, seed: int, first: int, width: int, height: int, mix: Mix
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    scenes = [training_scene(seed, first + i, (width, height), mix) for i in range(CHUNK)]
    pixels = torch.stack([pixels_of(paint(scene)) for scene in scenes])
    with torch.autocast("cpu", dtype=COMPUTE):
        mean = vae.encoder(pixels.contiguous(memory_format=torch.channels_last)).chunk(2, dim=1)[0].float()
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
    return latents.half().numpy(), np.stack(labels).astype(np.uint8), [scene.caption for scene in scenes]


def load_pools(folder: Path) -> list[Pool]:
    """The pools that `encode_pools` wrote into the folder so far, in the order of `ASPECTS`."""
    pools = []
    for width, height in ASPECTS:
        paths = sorted(folder.glob(f"{width}x{height}*.captions.json"))
        stems = [str(path).removesuffix(".captions.json") for path in paths]
        latents = np.concatenate([np.load(f"{stem}.latents.npy") for stem in stems])
        labels = np.concatenate([np.load(f"{stem}.labels.npy") for stem in stems])
        captions = [caption for path in paths for caption in json.loads(path.read_text())]
        pools.append(Pool(width, height, torch.from_numpy(latents), torch.from_numpy(labels), captions))
    return pools
