"""Batches for the transformer: noisy latents, text, velocity target and token labels, pure in (seed, process, step)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fluxtune.recipes.nano.latents import ASPECTS, ORDER, Pool, load_pools, position_ids
from fluxtune.recipes.nano.text import TextEncoders
from fluxtune.recipes.nano.workers import rank

CAPTION_DROPOUT = 0.1


@dataclass(frozen=True)
class Batch:
    """`noisy` and `velocity` `[batch, tokens, 64]`, `sigmas [batch]`, `text [batch, text tokens, 128]`,
    `pooled [batch, 64]`, `labels [batch, tokens, 4]`, `image_ids [tokens, 3]`."""

    noisy: Tensor
    velocity: Tensor
    sigmas: Tensor
    text: Tensor
    pooled: Tensor
    labels: Tensor
    image_ids: Tensor


class Batches:
    """Holds the encoded scenes of the folder `scenes` and the embeddings of their captions in memory."""

    def __init__(self, work: Path, scenes: str, size: int, seed: int) -> None:
        self._size, self._seed = size, seed
        encoders = TextEncoders(work / "text")
        self.empty_text, self.empty_pooled = encoders([""])
        self._pools = load_pools(work / scenes)
        self._embedded = [_embed(encoders, pool) for pool in self._pools]

    def __call__(self, step: int) -> Batch:
        """The batch of a step: flow matching, x = (1 - sigma) z + sigma noise, velocity = noise - z."""
        random = torch.Generator().manual_seed((self._seed * 16 + rank()) * 10_000_019 + step)
        which = ASPECTS.index(ORDER[step % len(ORDER)])
        pool, (texts, pooleds) = self._pools[which], self._embedded[which]
        rows = torch.randint(len(pool.captions), (self._size,), generator=random)
        latents = pool.latents[rows].float()
        noise = torch.randn(latents.shape, generator=random)
        sigmas = torch.sigmoid(0.2 + 1.1 * torch.randn(self._size, generator=random))
        mix = sigmas[:, None, None]
        dropped = torch.rand(self._size, generator=random) < CAPTION_DROPOUT
        text = torch.where(dropped[:, None, None], self.empty_text, texts[rows].float())
        pooled = torch.where(dropped[:, None], self.empty_pooled, pooleds[rows].float())
        return Batch(
            noisy=(1 - mix) * latents + mix * noise,
            velocity=noise - latents,
            sigmas=sigmas,
            text=text,
            pooled=pooled,
            labels=pool.labels[rows].long(),
            image_ids=position_ids(pool.width, pool.height),
        )


def _embed(encoders: TextEncoders, pool: Pool) -> tuple[Tensor, Tensor]:
    """Half precision states and pooled states of the pool's captions."""
    parts = [encoders(pool.captions[i : i + 256]) for i in range(0, len(pool.captions), 256)]
    return torch.cat([text.half() for text, _ in parts]), torch.cat([pooled.half() for _, pooled in parts])
