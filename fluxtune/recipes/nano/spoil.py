"""Pictures for the judge's schooling: weathered as generated pictures are, or spoiled so that the thing is lost.

All work on batches `[batch, 3, height, width]` in [-1, 1] and draw from the generator that they are given.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional

from fluxtune.nano.judge import pixels_of


def weathered(pixels: Tensor, random: Generator) -> Tensor:
    """Slightly bent, soft, noisy, off in colour and compressed, each by its own amount; the picture stays right."""
    batch = len(pixels)
    pixels = bent(pixels, _uniform(batch, 0, 1.3, random), 8, random)
    pixels = softened(pixels, _uniform(batch, 0, 1.0, random))
    if float(torch.rand((), generator=random)) < 0.3:
        size = [round(side * 0.6) for side in pixels.shape[2:]]
        smaller = functional.interpolate(pixels, size, mode="bilinear", antialias=True)
        pixels = functional.interpolate(smaller, pixels.shape[2:], mode="bicubic")
    gain = 1 + 0.03 * torch.randn(batch, 3, 1, 1, generator=random)
    offset = 0.025 * torch.randn(batch, 3, 1, 1, generator=random)
    grain = _uniform(batch, 0, 0.06, random) * torch.randn(pixels.shape, generator=random)
    blotches = _uniform(batch, 0, 0.04, random) * _smooth(pixels.shape, 8, random)
    pixels = (gain * pixels + offset + grain + blotches).clamp(-1, 1)
    compressed = torch.rand(batch, generator=random) < 0.2
    for index in compressed.nonzero().flatten().tolist():
        pixels[index] = _jpeg(pixels[index], quality=int(torch.randint(35, 90, (), generator=random)))
    return pixels


def spoiled(whole: Tensor, empty: Tensor, other: Tensor, random: Generator) -> Tensor:
    """The thing of `whole` made unrecognisable, each in one of several ways; the background stays.

    `empty` is the same scene without the thing, `other` with another thing at its place.
    """
    result = whole.clone()
    ways = torch.randint(len(_WAYS), (len(whole),), generator=random)
    for number, way in enumerate(_WAYS):
        chosen = (ways == number).nonzero().flatten()
        if len(chosen):
            result[chosen] = way(whole[chosen], empty[chosen], other[chosen], random)
    return result


def bent(pixels: Tensor, amount: Tensor, waves: int, random: Generator) -> Tensor:
    """Every pixel moved along a smooth random field of about `waves` waves, by about
    `amount [batch, 1, 1, 1]` pixels."""
    batch, _, height, width = pixels.shape
    move = amount * _smooth((batch, 2, height, width), waves, random)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    scale = torch.tensor([2 / (width - 1), 2 / (height - 1)])
    grid = torch.stack((columns, rows), dim=-1) + move.permute(0, 2, 3, 1) * scale
    return functional.grid_sample(pixels, grid, padding_mode="border", align_corners=True)


def softened(pixels: Tensor, deviation: Tensor) -> Tensor:
    """Blurred by a Gaussian of `deviation [batch, 1, 1, 1]` pixels."""
    reach = int(3 * float(deviation.max())) + 1
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offsets / deviation.view(-1, 1).clamp(min=0.2)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)
    flat = functional.pad(pixels.flatten(0, 1)[None], (reach, reach, reach, reach), mode="replicate")
    flat = functional.conv2d(flat, kernel[:, None, None, :], groups=len(kernel))
    return functional.conv2d(flat, kernel[:, None, :, None], groups=len(kernel))[0].view_as(pixels)


def _half_erased(whole: Tensor, empty: Tensor, other: Tensor, random: Generator) -> Tensor:
    return torch.lerp(empty, whole, _one_side(whole, empty, random))


def _half_another(whole: Tensor, empty: Tensor, other: Tensor, random: Generator) -> Tensor:
    return torch.lerp(other, whole, _one_side(whole, empty, random))


def _blended(whole: Tensor, empty: Tensor, other: Tensor, random: Generator) -> Tensor:
    return torch.lerp(whole, other, _uniform(len(whole), 0.35, 0.65, random))


def _faint(whole: Tensor, empty: Tensor, other: Tensor, random: Generator) -> Tensor:
    return torch.lerp(empty, whole, _uniform(len(whole), 0.1, 0.4, random))


def _ragged(whole: Tensor, empty: Tensor, other: Tensor, random: Generator) -> Tensor:
    """Torn into patches, a third to a half of them gone."""
    field = _smooth((len(whole), 1, *whole.shape[2:]), 16, random)
    gone = torch.quantile(field.flatten(1), 0.42, dim=1)[:, None, None, None]
    return torch.lerp(empty, whole, torch.sigmoid(8 * (field - gone)))


def _twisted(whole: Tensor, empty: Tensor, other: Tensor, random: Generator) -> Tensor:
    """Strongly bent, before a background that stays straight."""
    amount = _uniform(len(whole), 0.13, 0.22, random) * _extent(whole, empty)
    layers = torch.cat((whole, _cover(whole, empty)), dim=1)
    layers = bent(layers, amount, 12, random)
    return torch.lerp(empty, layers[:, :3], layers[:, 3:])


def _smeared(whole: Tensor, empty: Tensor, other: Tensor, random: Generator) -> Tensor:
    deviation = _uniform(len(whole), 0.12, 0.2, random) * _extent(whole, empty)
    return empty + softened(whole - empty, deviation)


# Halves take the most learning, so they are shown the most.
_WAYS: tuple[Callable[[Tensor, Tensor, Tensor, Generator], Tensor], ...] = (
    *(3 * (_half_erased, _half_another)),
    *(2 * (_blended, _ragged)),
    _faint,
    _twisted,
    _smeared,
)


def _cover(whole: Tensor, empty: Tensor) -> Tensor:
    """`[batch, 1, height, width]`: 1 where the thing is."""
    return ((whole - empty).abs().amax(dim=1, keepdim=True) > 0.02).float()


def _extent(whole: Tensor, empty: Tensor) -> Tensor:
    """`[batch, 1, 1, 1]`: the square root of the thing's area, in pixels."""
    return _cover(whole, empty).sum(dim=(1, 2, 3), keepdim=True).sqrt()


def _one_side(whole: Tensor, empty: Tensor, random: Generator) -> Tensor:
    """`[batch, 1, height, width]`: 1 on one side of a line through about the thing's middle, 0 on the other."""
    cover = _cover(whole, empty)
    batch, _, height, width = cover.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    area = cover.sum(dim=(1, 2, 3)).clamp(min=1)
    middle_row, middle_column = (
        ((cover[:, 0] * places).sum(dim=(1, 2)) / area)[:, None, None] for places in (rows, columns)
    )
    angle = _uniform(batch, 0, 2 * torch.pi, random)[:, 0]
    shift = _uniform(batch, -0.1, 0.1, random)[:, 0] * area.sqrt()[:, None, None]
    distance = (columns - middle_column) * angle.cos() + (rows - middle_row) * angle.sin() + shift
    return torch.sigmoid(distance)[:, None]


def _smooth(shape: torch.Size | tuple[int, ...], waves: int, random: Generator) -> Tensor:
    """Noise of deviation 1 from random cosines of up to `waves` half periods over a side."""
    height, width = shape[2:]
    down, across = (
        torch.cos(torch.pi * torch.arange(waves)[:, None] * (torch.arange(side) + 0.5) / side)
        for side in (height, width)
    )
    field = down.T @ torch.randn(*shape[:2], waves, waves, generator=random) @ across
    return field / field.std(dim=(2, 3), keepdim=True)


def _uniform(batch: int, low: float, high: float, random: Generator) -> Tensor:
    return low + (high - low) * torch.rand(batch, 1, 1, 1, generator=random)


def _jpeg(pixels: Tensor, quality: int) -> Tensor:
    array = ((pixels.permute(1, 2, 0) + 1) * 127.5).round().numpy().astype(np.uint8)
    stream = BytesIO()
    Image.fromarray(array).save(stream, "JPEG", quality=quality)
    return pixels_of(Image.open(stream))
