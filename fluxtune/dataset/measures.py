"""What can be measured in a picture's pixels: sharpness, plain borders, and a fingerprint that survives small changes.

The thresholds that go with them are in ``picture_checks.py``; how they were chosen is in ``docs/data-checks.md``.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from PIL import Image

Borders: TypeAlias = tuple[float, float, float, float]
"""Shares of the picture's sides, (left, top, right, bottom), that are plain bars."""

NO_BORDERS: Borders = (0.0, 0.0, 0.0, 0.0)

_TILES = 8
_STRIDE = 8
"""Each eighth row and column tells as much about sharpness as all of them."""
_REACH = 6
_FLAT = 4.0
"""Mean contrast of a tile, of 255, below which nothing in it could be sharp or blurred."""

SMALL = 256
"""Pixels of the shorter side, at least, of the pictures that are searched for bars and fingerprinted."""
_NEAR, _FAR = 12, 24
"""Of 255: how near a bar's pixels are to its colour, and how far the picture's are beside it."""

_GRID = 32
_HASH_SIDE = 8
_PARTS = (
    (1.0, 1.0, 0.0, 0.0),
    *((share, share, 0.5, 0.5) for share in (0.95, 0.9, 0.85, 0.8)),
    *((0.9, 0.9, across, down) for across in (0.0, 1.0) for down in (0.0, 1.0)),
    *((share, 1.0, across, 0.0) for share, across in ((0.85, 0.0), (0.85, 0.5), (0.85, 1.0), (0.75, 0.5))),
    *((1.0, share, 0.0, down) for share, down in ((0.85, 0.0), (0.85, 0.5), (0.85, 1.0), (0.75, 0.5))),
)
"""(share of the width, of the height, where it lies across and down, from 0 to 1): crops that people make."""


def sharpness(grey: Image.Image, resolution: int) -> float | None:
    """How fast brightness changes from pixel to pixel, against over six pixels, where the picture is sharpest.

    The mean of the absolute second difference over that of the difference across six pixels, in each of 8 x 8 tiles;
    of the half of the tiles with more contrast, the ninth decile counts: so a blurred background does not make a
    portrait blurred. Sharp photographs have 0.14 and more, those blurred by a Gaussian of two pixels 0.12 and less.

    Args:
        resolution: side in pixels of the square with as many pixels as the picture is trained at; a larger one is
            measured at that size.

    Returns:
        None where the picture is too small or too flat to tell.
    """
    shrink = (grey.width * grey.height) ** 0.5 / resolution
    if shrink >= 2:
        grey = grey.reduce(int(shrink))
        shrink /= int(shrink)
    if min(grey.size) / max(1.0, shrink) < _TILES * 2 * _REACH:
        return None
    values = np.asarray(grey)
    fine = np.zeros((_TILES, _TILES))
    coarse = np.zeros((_TILES, _TILES))
    for lines, turned in ((values[::_STRIDE], False), (np.ascontiguousarray(values[:, ::_STRIDE].T), True)):
        signed = _shortened(lines, shrink).astype(np.int16)
        # Rounding to 8 bits alone makes differences of 1.
        second = np.maximum(np.abs(signed[:, 2:] - 2 * signed[:, 1:-1] + signed[:, :-2]) - 1, 0)
        wide = np.maximum(np.abs(signed[:, _REACH:] - signed[:, :-_REACH]) - 1, 0)
        for total, differences in ((fine, second), (coarse, wide)):
            means = _tile_means(differences)
            total += means.T if turned else means
    contrast = coarse.ravel()
    told = (contrast >= np.median(contrast)) & (contrast > _FLAT)
    if not told.any():
        return None
    return float(np.quantile(fine.ravel()[told] / contrast[told], 0.9))


def _shortened(lines: np.ndarray, shrink: float) -> np.ndarray:
    """``[lines, pixels]`` with fewer pixels a line, if ``shrink`` is above 1: quicker than to shrink all lines."""
    if shrink <= 1:
        return lines
    size = (round(lines.shape[1] / shrink), lines.shape[0])
    return np.asarray(Image.fromarray(lines).resize(size, Image.Resampling.HAMMING))


def _tile_means(values: np.ndarray) -> np.ndarray:
    """``[rows, columns]`` -> the means of 8 x 8 tiles; what is left over at the ends is left out."""
    rows, columns = (side // _TILES for side in values.shape)
    cut = values[: rows * _TILES, : columns * _TILES]
    # Columns first, in whole numbers: several times faster than a mean over two axes at once.
    sums = np.add.reduceat(cut, np.arange(0, columns * _TILES, columns), axis=1, dtype=np.int32)
    return sums.reshape(_TILES, rows, _TILES).mean(axis=1) / columns


def plain_borders(grey: Image.Image) -> Borders:
    """Bars of one brightness along the edges, as letterboxes and frames are.

    A bar ends at once, all along its length: a product before a white wall has none, for there only few pixels of
    the first other line differ.
    """
    values = np.asarray(grey, dtype=np.int16)
    # Each with its edge as the first line.
    left, top, right, bottom = (_bar(lines) for lines in (values.T, values, values.T[::-1], values[::-1]))
    return left, top, right, bottom


def _bar(lines: np.ndarray) -> float:
    """The share of the lines ``[lines, pixels]``, from the first, that are a bar."""
    brightness = np.median(lines[0])
    plain = (np.abs(lines - brightness) <= _NEAR).mean(axis=1) >= 0.995
    if plain.all() or not plain[0]:
        return 0.0
    end = int(plain.argmin())
    # The line at the seam is half bar, half picture: the one behind it tells.
    behind = np.abs(lines[min(end + 1, len(lines) - 1)] - brightness)
    return end / len(lines) if (behind > _FAR).mean() > 0.5 else 0.0


def is_blank(grey: Image.Image) -> bool:
    """Whether all pixels have nearly the same brightness."""
    low, high = grey.getextrema()
    return bool(high - low <= 4)  # type: ignore[operator]


def fingerprints(grey: Image.Image) -> tuple[int, ...]:
    """One of the whole picture, then those of its inner parts and corners: what a copy that was cropped would have.

    Each is 64 bits of coarse structure: the signs of the lowest 8 x 8 cosine frequencies about their median. (The
    "pHash" of Zauner, 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions".) Pictures that differ
    by compression, size, light or a little blur differ in few bits.
    """
    small = np.stack([_resized(grey, part) for part in _PARTS])
    lowest = (_COSINES @ small @ _COSINES.T).reshape(len(_PARTS), -1)
    bits = lowest > np.median(lowest, axis=1, keepdims=True)
    return tuple(int.from_bytes(row.tobytes(), "big") for row in np.packbits(bits, axis=1))


def _resized(grey: Image.Image, part: tuple[float, float, float, float]) -> np.ndarray:
    """A part of the picture as ``[32, 32]``."""
    width, height, across, down = part
    left, top = across * (1 - width), down * (1 - height)
    sides = (left * grey.width, top * grey.height, (left + width) * grey.width, (top + height) * grey.height)
    # Sums of shares may end a hair beyond the picture.
    box = (sides[0], sides[1], min(sides[2], grey.width), min(sides[3], grey.height))
    return np.asarray(grey.resize((_GRID, _GRID), Image.Resampling.BOX, box=box), dtype=np.float32)


def _cosines() -> np.ndarray:
    """The first 8 rows but the constant one of the discrete cosine transform of 32 values."""
    frequencies, places = np.arange(1, _HASH_SIDE + 1)[:, None], np.arange(_GRID)[None]
    return np.cos(np.pi * frequencies * (2 * places + 1) / (2 * _GRID)).astype(np.float32)


_COSINES = _cosines()
