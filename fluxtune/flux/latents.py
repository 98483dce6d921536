"""Pictures as FLUX sees them: latents, patchified and packed into tokens.

Caches and the training loop hold latents patchified, ``[batch, 4 * channels, height / 16, width / 16]``; the
transformer takes them packed, ``[batch, tokens, 4 * channels]``. Source of both: the FLUX pipelines of diffusers
(``_pack_latents``), and ``prepare`` in ``black-forest-labs/flux`` ``src/flux/sampling.py``.
"""

from __future__ import annotations

import torch


def patchify(latents: torch.Tensor) -> torch.Tensor:
    """``[batch, channels, 2h, 2w] -> [batch, 4 * channels, h, w]``; a patch's order is channel, row, column."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 1, 3, 5, 2, 4).reshape(batch, channels * 4, height // 2, width // 2)


def unpatchify(patches: torch.Tensor) -> torch.Tensor:
    """The inverse of ``patchify``: ``[batch, 4 * channels, h, w] -> [batch, channels, 2h, 2w]``."""
    batch, features, height, width = patches.shape
    latents = patches.reshape(batch, features // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return latents.reshape(batch, features // 4, height * 2, width * 2)


def pack(latents: torch.Tensor) -> torch.Tensor:
    """``[batch, features, h, w] -> [batch, h * w, features]``, row by row."""
    return latents.flatten(2).transpose(1, 2)


def unpack(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The inverse of ``pack``: ``[batch, h * w, features] -> [batch, features, h, w]``."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], height, width)


def image_ids(height: int, width: int) -> torch.Tensor:
    """Position ids ``[h * w, 3]`` of image tokens: 0, row, column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()
