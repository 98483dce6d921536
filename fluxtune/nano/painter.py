"""Paints scenes, and tells for each of a picture's tokens what is there."""

from __future__ import annotations

from dataclasses import dataclass
from math import sin

import numpy as np
from PIL import Image, ImageDraw

from fluxtune.nano.brush import Brush
from fluxtune.nano.critters import draw_critter
from fluxtune.nano.palette import BACKGROUND_COLOURS, BACKGROUND_KINDS, COLOURS, Rgb, shade, tint
from fluxtune.nano.scenes import Background, Scene, Thing
from fluxtune.nano.shapes import SHAPES

SUPERSAMPLING = 2
TOKEN = 16
"""Pixels of a transformer token's side: 8 of the VAE's times 2 of packing."""

KINDS = ("nothing", *SHAPES, "critter")


@dataclass(frozen=True)
class TokenLabels:
    """What is at each token of a picture, `[rows, columns]` integers; 0 in `kind` and `colour` is nothing."""

    kind: np.ndarray
    colour: np.ndarray
    background_kind: int
    background_colour: int


def paint(scene: Scene, scale: int = 1) -> Image.Image:
    """The scene as an RGB image of `scale` times its width and height."""
    factor = SUPERSAMPLING * scale
    size = (scene.width * factor, scene.height * factor)
    image = Image.new("RGB", size, BACKGROUND_COLOURS[scene.background.colour])
    draw = ImageDraw.Draw(image)
    _paint_background(draw, *size, scene.background, scale)
    for thing in scene.things:
        _paint_thing(thing, draw, *size)
    return image.reduce(SUPERSAMPLING)


def token_labels(scene: Scene) -> TokenLabels:
    """Labels from the things' silhouettes: a token shows a thing that covers a third of it."""
    cells = 4
    width, height = scene.width * cells // TOKEN, scene.height * cells // TOKEN
    kind = np.zeros((height // cells, width // cells), np.int64)
    colour = np.zeros_like(kind)
    for thing in scene.things:
        silhouette = Image.new("L", (width, height))
        _paint_thing(thing, ImageDraw.Draw(silhouette), width, height, flat=1)
        covered = np.asarray(silhouette).reshape(height // cells, cells, width // cells, cells).mean((1, 3))
        kind[covered > 0.33] = KINDS.index(thing.kind)
        colour[covered > 0.33] = 1 + list(COLOURS).index(thing.colour)
    return TokenLabels(
        kind,
        colour,
        BACKGROUND_KINDS.index(scene.background.kind),
        list(BACKGROUND_COLOURS).index(scene.background.colour),
    )


def _paint_thing(thing: Thing, draw: ImageDraw.ImageDraw, width: int, height: int, flat: int | None = None) -> None:
    radius = thing.radius * min(width, height)
    brush = Brush(draw, thing.x * width, thing.y * height, radius, thing.tilt, thing.mirrored, flat)
    if thing.critter is not None:
        draw_critter(brush, thing.critter, thing.pose)
    else:
        SHAPES[thing.kind](brush, COLOURS[thing.colour])


def _paint_background(draw: ImageDraw.ImageDraw, width: int, height: int, background: Background, scale: int) -> None:
    colour = BACKGROUND_COLOURS[background.colour]
    mark = tint(colour, 0.2) if background.colour == "navy" else shade(colour, 0.13)
    if background.kind == "striped":
        _stripes(draw, width, height, background.phase, mark, scale)
    elif background.kind == "dotted":
        _dots(draw, width, height, background.phase, mark, scale)
    elif background.kind == "hilly":
        _hills(draw, width, height, background.phase, colour, mark, scale)


def _stripes(draw: ImageDraw.ImageDraw, width: int, height: int, phase: float, mark: Rgb, scale: int) -> None:
    period = 48 * scale
    x = (phase - 1) * period
    while x < width:
        draw.rectangle((x, 0, x + period // 2, height), fill=mark)
        x += period


def _dots(draw: ImageDraw.ImageDraw, width: int, height: int, phase: float, mark: Rgb, scale: int) -> None:
    step, radius = 40 * scale, 9 * scale
    for row in range(-1, height // step + 2):
        for column in range(-1, width // step + 2):
            x = (column + phase + 0.5 * (row % 2)) * step
            y = (row + 0.5) * step
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=mark)


def _hills(
    draw: ImageDraw.ImageDraw, width: int, height: int, phase: float, colour: Rgb, mark: Rgb, scale: int
) -> None:
    sun, radius, step = tint(colour, 0.6), 20 * scale, 16 * scale
    sun_x, sun_y = (0.14 + 0.72 * phase) * width, 0.17 * height
    draw.ellipse((sun_x - radius, sun_y - radius, sun_x + radius, sun_y + radius), fill=sun)
    far = shade(mark, 0.12) if colour[0] > 100 else tint(mark, 0.12)
    for level, swing, hill in ((0.62, 1.0, mark), (0.78, -1.3, far)):
        ridge = [
            (x, height * (level + 0.07 * sin(swing * (6.28 * x / width + 6.28 * phase))))
            for x in range(0, width + step, step)
        ]
        draw.polygon([*ridge, (width + step, height), (0, height)], fill=hill)
