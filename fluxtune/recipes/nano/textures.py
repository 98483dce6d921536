"""Pictures of nothing in particular, so that the VAE serves more than what the painter paints."""

from __future__ import annotations

from random import Random

import numpy as np
from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]


def texture(seed: int, index: int, side: int = 64) -> Image.Image:
    """A square RGB picture, a pure function of (seed, index): outlined figures, gratings or soft noise."""
    random = Random(f"nano texture {seed} {index}")
    kind = random.random()
    if kind < 0.65:
        return _figures(random, side)
    if kind < 0.85:
        return _grating(random, side)
    return _noise(random, side)


def _colour(random: Random) -> Rgb:
    return random.randrange(256), random.randrange(256), random.randrange(256)


def _figures(random: Random, side: int) -> Image.Image:
    """Random polygons, ellipses, bars and lines, many with a dark outline."""
    size = 2 * side
    image = Image.new("RGB", (size, size), _colour(random))
    draw = ImageDraw.Draw(image)
    for _ in range(random.randint(3, 12)):
        fill = _colour(random)
        dark: Rgb = (fill[0] // 2, fill[1] // 2, fill[2] // 2)
        outline = random.choice((None, dark, (50, 42, 56)))
        x, y, radius = random.uniform(0, size), random.uniform(0, size), random.uniform(0.03, 0.4) * size
        figure = random.random()
        if figure < 0.4:
            down = radius * random.uniform(0.4, 1)
            draw.ellipse((x - radius, y - down, x + radius, y + down), fill, outline, width=3)
        elif figure < 0.75:
            points = [
                (x + radius * random.uniform(-1, 1), y + radius * random.uniform(-1, 1))
                for _ in range(random.randint(3, 7))
            ]
            draw.polygon(points, fill)
            if outline is not None:
                draw.line([*points, points[0]], outline, width=3)
        else:
            end = (x + radius * random.uniform(-1, 1), y + radius * random.uniform(-1, 1))
            draw.line([(x, y), end], fill, width=random.randint(2, 16))
    return image.reduce(2)


def _grating(random: Random, side: int) -> Image.Image:
    """Stripes of two colours at any angle and width, soft or hard."""
    down, across = np.mgrid[0:side, 0:side] / side
    angle, cycles, phase = random.uniform(0, 3.14), random.uniform(1, 10), random.uniform(0, 6.28)
    wave = np.sin(6.28 * cycles * (across * np.cos(angle) + down * np.sin(angle)) + phase)
    mix = 0.5 + 0.5 * np.clip(wave * random.choice((1, 3, 10)), -1, 1)
    first, second = np.array(_colour(random)), np.array(_colour(random))
    return Image.fromarray((first + mix[..., None] * (second - first)).astype(np.uint8))


def _noise(random: Random, side: int) -> Image.Image:
    """Random colours on a coarse grid, enlarged smoothly."""
    generator = np.random.default_rng(random.getrandbits(32))
    cells = random.choice((2, 4, 8, 16))
    grid = Image.fromarray(generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
    return grid.resize((side, side), Image.Resampling.BICUBIC)
