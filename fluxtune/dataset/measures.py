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
_STRIDE = 4
"""Each fourth row and column tells as much about sharpness as all of them."""
_REACH = 6
_FLAT = 4.0
"""Mean contrast of a tile, of 255, below which nothing in it could be sharp or blurred."""

_SMALL = 256
_NEAR, _FAR = 12, 40
"""Of 255: how near a bar's pixels are to its colour, and how far the picture's are beside it."""

_GRID = 32
_HASH_SIDE = 8


def sharpness(grey: Image.Image) -> float | None:
    """How fast brightness changes from pixel to pixel, against over six pixels, where the picture is sharpest.

    The mean of the absolute second difference over that of the difference across six pixels, in each of 8 x 8 tiles;
    of the half of the tiles with more contrast, the ninth decile counts: so a blurred background does not make a
    portrait blurred. Sharp photographs have 0.2 and more, those blurred by a Gaussian of two pixels 0.14 and less.

    Args:
        grey: at the size at which it will be trained.

    Returns:
        None where the picture is too small or too flat to tell.
    """
    values = np.asarray(grey)
    if min(values.shape) < _TILES * 2 * _REACH:
        return None
    fine = np.zeros((_TILES, _TILES))
    coarse = np.zeros((_TILES, _TILES))
    for lines, turned in ((values[::_STRIDE], False), (np.ascontiguousarray(values[:, ::_STRIDE].T), True)):
        signed = lines.astype(np.int16)
        second = np.abs(signed[:, 2:] - 2 * signed[:, 1:-1] + signed[:, :-2])
        wide = np.abs(signed[:, _REACH:] - signed[:, :-_REACH])
        for total, differences in ((fine, second), (coarse, wide)):
            means = _tile_means(differences)
            total += means.T if turned else means
    contrast = coarse.ravel()
    told = (contrast >= np.median(contrast)) & (contrast > _FLAT)
    if not told.any():
        return None
    return float(np.quantile(fine.ravel()[told] / contrast[told], 0.9))


def _tile_means(values: np.ndarray) -> np.ndarray:
    """``[rows, columns]`` -> the means of 8 x 8 tiles; what is left over at the ends is left out."""
    rows, columns = (side // _TILES for side in values.shape)
    cut = values[: rows * _TILES, : columns * _TILES]
    # Columns first, in whole numbers: several times faster than a mean over two axes at once.
    sums = np.add.reduceat(cut, np.arange(0, columns * _TILES, columns), axis=1, dtype=np.int32)
    return sums.reshape(_TILES, rows, _TILES).mean(axis=1) / columns


def plain_borders(picture: Image.Image) -> Borders:
    """Bars of one colour along the edges, as letterboxes and frames are.

    A bar ends at once, all along its length: a product before a white wall has none, for there only few pixels of
    the first other line differ.
    """
    small = picture.reduce(max(1, min(picture.size) // _SMALL))
    values = np.asarray(small, dtype=np.int16)
    # In the order left, top, right, bottom, each with the edge as the first line.
    turned = values.transpose(1, 0, 2)
    left, top, right, bottom = (_bar(lines) for lines in (turned, values, turned[::-1], values[::-1]))
    return left, top, right, bottom


def _bar(lines: np.ndarray) -> float:
    """The share of the lines ``[lines, pixels, 3]``, from the first, that are a bar."""
    colour = np.median(lines[0], axis=0)
    for index in range(len(lines)):
        distance = np.abs(lines[index] - colour).max(axis=1)
        if (distance <= _NEAR).mean() < 0.995:
            break
    else:
        return 0.0
    # The line at the seam is half bar, half picture: the one behind it tells.
    behind = np.abs(lines[min(index + 1, len(lines) - 1)] - colour).max(axis=1)
    return index / len(lines) if (behind > _FAR).mean() > 0.5 else 0.0


def is_blank(grey: Image.Image) -> bool:
    """Whether all pixels have nearly the same brightness."""
    low, high = grey.getextrema()
    return bool(high - low <= 4)  # type: ignore[operator]


def fingerprint(grey: Image.Image) -> int:
    """64 bits of the picture's coarse structure: the signs of its lowest 8 x 8 cosine frequencies about their median.

    (The "pHash" of Zauner, 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions".) Pictures that
    differ by compression, size, light or a little blur differ in few bits.
    """
    small = np.asarray(grey.resize((_GRID, _GRID), Image.Resampling.BOX), dtype=np.float64)
    lowest = (_COSINES @ small @ _COSINES.T).ravel()
    bits = lowest > np.median(lowest)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _cosines() -> np.ndarray:
    """The first 8 rows but the constant one of the discrete cosine transform of 32 values."""
    frequencies, places = np.arange(1, _HASH_SIDE + 1)[:, None], np.arange(_GRID)[None]
    return np.cos(np.pi * frequencies * (2 * places + 1) / (2 * _GRID))


_COSINES = _cosines()
