"""What can be measured in a picture's pixels: sharpness, plain borders, and a fingerprint that survives small changes.

The thresholds that go with them are in ``picture_checks.py``; how they were chosen is in ``docs/validate.md``.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from PIL import Image

Borders: TypeAlias = tuple[float, float, float, float]
"""Shares of the picture's sides, (left, top, right, bottom), that are plain bars."""

NO_BORDERS: Borders = (0.0, 0.0, 0.0, 0.0)

_TILES = 8
_LINES = 48
"""So many rows and columns, six through each tile, tell as much about sharpness as all of them."""
_REACH = 6
_FLAT = 4.0
"""Mean contrast of a tile, of 255, below which nothing in it could be sharp or blurred."""

SMALL = 256
"""Pixels of the shorter side, at least, of the pictures that are searched for bars and fingerprinted."""
_NEAR, _FAR = 12, 24
"""Of 255: how near a bar's pixels are to its colour, and how far the picture's are beside it."""

_SHEET = 64
"""Pixels of the sides of what is fingerprinted, whatever the picture's shape."""
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


def thumbnail(image: Image.Image) -> Image.Image:
    """The picture in grey, its shorter side of ``SMALL`` pixels to twice that if it has them.

    Each pixel is the mean of four that lie apart in its cell, which tell as much as all of them.
    """
    cell = min(image.size) // SMALL
    if cell < 2:
        return image.convert("L")
    thinned = image.resize((2 * (image.width // cell), 2 * (image.height // cell)), Image.Resampling.NEAREST)
    return thinned.convert("L").reduce(2)


def sharpness(image: Image.Image, resolution: int) -> float | None:
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
    shrink = (image.width * image.height) ** 0.5 / resolution
    if shrink >= 2:
        image = image.convert("L").reduce(int(shrink))
        shrink /= int(shrink)
    if min(image.size) / max(1.0, shrink) < _TILES * 2 * _REACH:
        return None
    rows = image.resize((image.width, _LINES), Image.Resampling.NEAREST)
    columns = image.resize((_LINES, image.height), Image.Resampling.NEAREST).transpose(Image.Transpose.TRANSPOSE)
    (fine, coarse), (fine_down, coarse_down) = (
        _changes(_shortened(lines.convert("L"), shrink)) for lines in (rows, columns)
    )
    fine, coarse = fine + fine_down.T, coarse + coarse_down.T
    contrast = coarse.ravel()
    told = (contrast >= np.median(contrast)) & (contrast > _FLAT)
    if not told.any():
        return None
    ranked = np.sort(fine.ravel()[told] / contrast[told])
    return float(np.interp(0.9 * (len(ranked) - 1), np.arange(len(ranked)), ranked))


def _shortened(lines: Image.Image, shrink: float) -> np.ndarray:
    """``[lines, pixels]``, with fewer pixels a line if ``shrink`` is above 1: quicker than to shrink all lines."""
    if shrink > 1:
        lines = lines.resize((round(lines.width / shrink), lines.height), Image.Resampling.HAMMING)
    return np.asarray(lines, dtype=np.int16)


def _changes(lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean absolute second difference and difference across six pixels in 8 x 8 tiles of ``[48, pixels]``."""
    second = lines[:, 2:] - 2 * lines[:, 1:-1] + lines[:, :-2]
    wide = lines[:, _REACH:] - lines[:, :-_REACH]
    return _tile_means(second), _tile_means(wide)


def _tile_means(differences: np.ndarray) -> np.ndarray:
    """``[48, pixels]`` -> the means of 8 x 8 tiles; what is left over at the ends of lines is left out."""
    width = differences.shape[1] // _TILES
    size = np.abs(differences[:, : width * _TILES])
    # Rounding to 8 bits alone makes differences of 1.
    size -= size > 0
    # In whole numbers along the lines first: several times faster than a mean over two axes at once.
    sums = np.add.reduceat(size, np.arange(_TILES) * width, axis=1, dtype=np.int32)
    return sums.reshape(_TILES, _LINES // _TILES, _TILES).mean(axis=1) / width


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
    # Of most pictures not even the edge is plain, which is soon told.
    if not _plain(lines[:1], brightness).all():
        return 0.0
    plain = _plain(lines, brightness)
    if plain.all():
        return 0.0
    end = int(plain.argmin())
    # The line at the seam is half bar, half picture: the one behind it tells.
    behind = np.abs(lines[min(end + 1, len(lines) - 1)] - brightness)
    return end / len(lines) if (behind > _FAR).mean() > 0.5 else 0.0


def _plain(lines: np.ndarray, brightness: float) -> np.ndarray:
    """Which of the lines have one brightness."""
    return (np.abs(lines - brightness) <= _NEAR).mean(axis=1) >= 0.995


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
    whole = np.asarray(grey.resize((_SHEET, _SHEET), Image.Resampling.BOX), dtype=np.float32)
    lowest = (_DOWN @ whole @ _ACROSS).reshape(len(_PARTS), -1)
    bits = lowest > np.median(lowest, axis=1, keepdims=True)
    return tuple(int.from_bytes(row.tobytes(), "big") for row in np.packbits(bits, axis=1))


def _frequencies(share: float, place: float) -> np.ndarray:
    """``[8, 64]``: what gives the lowest cosine frequencies of a part of 64 values, but the constant one.

    Args:
        share: how much of the values the part has.
        place: where it lies in them, from 0 to 1.
    """
    # The part as the means of 32 equal pieces, of which the first and last value of a piece may count in part.
    edges = (place * (1 - share) + share * np.linspace(0, 1, _GRID + 1)) * _SHEET
    values = np.arange(_SHEET)
    overlap = np.minimum(edges[1:, None], values + 1) - np.maximum(edges[:-1, None], values)
    means = np.maximum(overlap, 0) / np.diff(edges)[:, None]
    # The rows of the discrete cosine transform of 32 values.
    frequencies, places = np.arange(1, _HASH_SIDE + 1)[:, None], np.arange(_GRID)[None]
    cosines = np.cos(np.pi * frequencies * (2 * places + 1) / (2 * _GRID))
    return (cosines @ means).astype(np.float32)


_DOWN = np.stack([_frequencies(height, down) for _, height, _, down in _PARTS])
_ACROSS = np.stack([_frequencies(width, across).T for width, _, across, _ in _PARTS])
"""``[17, 8, 64]`` and ``[17, 64, 8]``: all parts of a picture at once."""
