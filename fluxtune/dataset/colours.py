"""Changes of light and colour, as other cameras and other lamps would make them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageStat

from fluxtune import rng

HUE_SHARE = 0.05
"""Of the jitter: how much of the circle of hues it turns at most. People see hue before anything else."""

_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
"""RGB to brightness and two axes of colour (NTSC, 1953): a turn of the latter two is a turn of hue."""


@dataclass(frozen=True)
class Colours:
    """How a picture's colours are changed.

    Attributes:
        brightness, contrast, saturation: factors; 1 changes nothing.
        hue: turn of the circle of hues, as a share of it; 0 changes nothing.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float


def colours_of(digest: str, index: int, jitter: float) -> Colours:
    """The change for one crop of a picture: its digest and the crop's number alone decide about it.

    Args:
        jitter: how far the factors lie from 1 at most; the hue turns by ``HUE_SHARE`` of it at most.
    """
    brightness, contrast, saturation, hue = (
        jitter * (2 * rng.uniform(0, what, digest, index) - 1)
        for what in ("brightness", "contrast", "saturation", "hue")
    )
    return Colours(1 + brightness, 1 + contrast, 1 + saturation, HUE_SHARE * hue)


def recoloured(image: Image.Image, colours: Colours) -> Image.Image:
    """The RGB picture with its colours changed: contrast about its mean brightness, the rest about grey.

    All of it is one linear map of each pixel, so that it is rounded once.
    """
    turn = 2 * np.pi * colours.hue
    turned = np.eye(3)
    turned[1:, 1:] = colours.saturation * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    factor = colours.brightness * colours.contrast
    matrix = factor * (np.linalg.inv(_TO_YIQ) @ turned @ _TO_YIQ)
    mean = colours.brightness * ImageStat.Stat(image.convert("L")).mean[0]
    rows = np.column_stack([matrix, np.full(3, (1 - colours.contrast) * mean)])
    return image.convert("RGB", tuple(rows.ravel().tolist()))
