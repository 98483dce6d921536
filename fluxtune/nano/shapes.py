"""The sixteen things that pictures show, each drawn in one main colour with a few details."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi, sin

from fluxtune.nano.brush import Brush, arc
from fluxtune.nano.palette import CREAM, INK, LEAF, SKY, WOOD, Rgb, shade, tint


def ball(brush: Brush, colour: Rgb) -> None:
    edge = shade(colour, 0.45)
    brush.ellipse(0, 0, 0.92, 0.92, colour, edge)
    band = [*arc(0, -0.28, 0.88, 0.3, 176, 4), *arc(0, 0.16, 0.9, 0.3, 4, 176)]
    brush.polygon(band, tint(colour, 0.62) if colour[2] < 245 else shade(colour, 0.2), edge)
    brush.ellipse(-0.36, -0.56, 0.16, 0.1, tint(colour, 0.8))


def box(brush: Brush, colour: Rgb) -> None:
    edge = shade(colour, 0.45)
    ribbon = shade(colour, 0.3)
    brush.polygon([(-0.78, -0.3), (0.78, -0.3), (0.78, 0.92), (-0.78, 0.92)], colour, edge)
    brush.polygon([(-0.88, -0.5), (0.88, -0.5), (0.88, -0.18), (-0.88, -0.18)], tint(colour, 0.25), edge)
    brush.polygon([(-0.16, -0.5), (0.16, -0.5), (0.16, 0.92), (-0.16, 0.92)], ribbon)
    brush.ellipse(-0.3, -0.7, 0.3, 0.2, ribbon, edge)
    brush.ellipse(0.3, -0.7, 0.3, 0.2, ribbon, edge)


def star(brush: Brush, colour: Rgb) -> None:
    tips = [
        ((1.0 if i % 2 == 0 else 0.46) * sin(pi * i / 5), (-1.0 if i % 2 == 0 else -0.46) * cos(pi * i / 5))
        for i in range(10)
    ]
    brush.polygon(tips, colour, shade(colour, 0.45))
    brush.polygon([(0.5 * x, 0.5 * y) for x, y in tips], tint(colour, 0.4))


def heart(brush: Brush, colour: Rgb) -> None:
    angles = [2 * pi * i / 36 for i in range(36)]
    outline = [
        (
            0.98 * sin(t) ** 3,
            -(13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)) / 15.5 - 0.12,
        )
        for t in angles
    ]
    brush.polygon(outline, colour, shade(colour, 0.45))
    brush.ellipse(-0.48, -0.5, 0.17, 0.13, tint(colour, 0.65))


def moon(brush: Brush, colour: Rgb) -> None:
    crescent = [*arc(0, 0, 0.94, 0.94, 50, 310, 24), *arc(0.42, 0, 0.66, 0.74, 300, 60, 18)]
    brush.polygon(crescent, colour, shade(colour, 0.45))
    brush.ellipse(-0.6, -0.2, 0.12, 0.12, tint(colour, 0.5))
    brush.ellipse(-0.52, 0.3, 0.09, 0.09, shade(colour, 0.2))
    brush.stroke(arc(-0.42, -0.04, 0.1, 0.08, 0, 180, 6), 0.06, INK)


def house(brush: Brush, colour: Rgb) -> None:
    edge = shade(colour, 0.45)
    roof = shade(colour, 0.38)
    brush.polygon([(0.36, -0.9), (0.6, -0.9), (0.6, -0.3), (0.36, -0.3)], roof, edge)
    brush.polygon([(-0.72, -0.16), (0.72, -0.16), (0.72, 0.92), (-0.72, 0.92)], colour, edge)
    brush.polygon([(-0.98, -0.1), (0, -0.94), (0.98, -0.1)], roof, edge)
    brush.polygon([(-0.5, 0.32), (-0.06, 0.32), (-0.06, 0.92), (-0.5, 0.92)], WOOD, INK)
    brush.polygon([(0.14, 0.14), (0.54, 0.14), (0.54, 0.52), (0.14, 0.52)], CREAM, edge)


def tree(brush: Brush, colour: Rgb) -> None:
    edge = shade(colour, 0.45)
    brush.polygon([(-0.15, 0.5), (0.15, 0.5), (0.15, 0.98), (-0.15, 0.98)], WOOD, INK)
    brush.polygon([(-0.82, 0.62), (0, -0.2), (0.82, 0.62)], shade(colour, 0.14), edge)
    brush.polygon([(-0.66, 0.14), (0, -0.58), (0.66, 0.14)], colour, edge)
    brush.polygon([(-0.48, -0.32), (0, -0.98), (0.48, -0.32)], tint(colour, 0.16), edge)


def fish(brush: Brush, colour: Rgb) -> None:
    edge = shade(colour, 0.45)
    fin = shade(colour, 0.25)
    brush.polygon([(0.42, 0), (0.98, -0.52), (0.84, 0), (0.98, 0.52)], fin, edge)
    brush.polygon([(-0.3, -0.4), (0.1, -0.8), (0.34, -0.34)], fin, edge)
    brush.ellipse(-0.18, 0, 0.8, 0.54, colour, edge)
    brush.stroke(arc(-0.62, 0, 0.3, 0.44, -70, 70, 8), 0.07, fin)
    brush.polygon([(-0.02, 0.06), (0.32, -0.1), (0.32, 0.3)], fin)
    brush.ellipse(-0.62, -0.14, 0.13, 0.13, CREAM, INK)
    brush.ellipse(-0.64, -0.14, 0.06, 0.06, INK)


def cup(brush: Brush, colour: Rgb) -> None:
    edge = shade(colour, 0.45)
    brush.stroke(arc(0.56, 0.16, 0.36, 0.34, -90, 90, 12), 0.17, shade(colour, 0.3))
    brush.polygon([(-0.76, -0.46), (0.6, -0.46), (0.46, 0.86), (-0.62, 0.86)], colour, edge)
    brush.ellipse(-0.08, -0.46, 0.68, 0.17, WOOD, edge)
    brush.stroke([(-0.3, -0.7), (-0.2, -0.84), (-0.3, -0.98)], 0.08, CREAM)
    brush.stroke([(0.12, -0.7), (0.22, -0.84), (0.12, -0.98)], 0.08, CREAM)
    brush.polygon([(-0.71, 0.02), (0.56, 0.02), (0.53, 0.3), (-0.69, 0.3)], tint(colour, 0.5))


def boat(brush: Brush, colour: Rgb) -> None:
    edge = shade(colour, 0.45)
    brush.polygon([(-0.05, -0.96), (0.05, -0.96), (0.05, 0.4), (-0.05, 0.4)], WOOD)
    brush.polygon([(0.12, -0.86), (0.8, 0.24), (0.12, 0.24)], tint(colour, 0.5), edge)
    brush.polygon([(-0.12, -0.64), (-0.12, 0.24), (-0.64, 0.24)], CREAM, edge)
    brush.polygon([(-0.98, 0.36), (0.98, 0.36), (0.6, 0.9), (-0.6, 0.9)], colour, edge)
    brush.stroke([(-0.84, 0.54), (0.84, 0.54)], 0.08, CREAM)


def mushroom(brush: Brush, colour: Rgb) -> None:
    edge = shade(colour, 0.45)
    brush.polygon([(-0.24, 0), (0.24, 0), (0.36, 0.92), (-0.36, 0.92)], CREAM, INK)
    brush.polygon([*arc(0, 0.1, 0.96, 0.98, 180, 360, 20), *arc(0, 0.1, 0.96, 0.2, 0, 180, 12)], colour, edge)
    spot = CREAM if sum(colour) < 700 else shade(colour, 0.3)
    for x, y, radius in ((-0.5, -0.18, 0.15), (0.06, -0.5, 0.19), (0.54, -0.12, 0.14)):
        brush.ellipse(x, y, radius, radius * 0.9, spot)


def flower(brush: Brush, colour: Rgb) -> None:
    edge = shade(colour, 0.4)
    brush.stroke([(0, 0), (0, 0.98)], 0.12, LEAF)
    brush.ellipse(0.28, 0.76, 0.28, 0.12, LEAF, shade(LEAF, 0.4))
    for i in range(6):
        angle = pi * i / 3
        brush.ellipse(0.42 * cos(angle), -0.3 + 0.42 * sin(angle), 0.29, 0.29, colour, edge)
    brush.ellipse(0, -0.3, 0.25, 0.25, INK if sum(colour) < 400 else WOOD, edge)


def kite(brush: Brush, colour: Rgb) -> None:
    edge = shade(colour, 0.45)
    brush.stroke([(0, 0.4), (0.12, 0.62), (-0.08, 0.8), (0.1, 0.98)], 0.06, INK)
    brush.ellipse(0.04, 0.7, 0.14, 0.08, tint(colour, 0.4), edge)
    brush.ellipse(0.02, 0.92, 0.14, 0.08, tint(colour, 0.4), edge)
    brush.polygon([(0, -0.98), (0.68, -0.36), (0, 0.46), (-0.68, -0.36)], colour, edge)
    brush.polygon([(0, -0.98), (0.68, -0.36), (0, -0.36)], tint(colour, 0.5))
    brush.polygon([(0, 0.46), (-0.68, -0.36), (0, -0.36)], shade(colour, 0.28))
    brush.stroke([(0, -0.98), (0, 0.46)], 0.05, edge)
    brush.stroke([(-0.68, -0.36), (0.68, -0.36)], 0.05, edge)


def car(brush: Brush, colour: Rgb) -> None:
    edge = shade(colour, 0.45)
    brush.polygon([(-0.56, -0.02), (-0.36, -0.54), (0.34, -0.54), (0.62, -0.02)], colour, edge)
    brush.polygon([(-0.42, -0.06), (-0.28, -0.42), (-0.04, -0.42), (-0.04, -0.06)], SKY)
    brush.polygon([(0.06, -0.06), (0.06, -0.42), (0.28, -0.42), (0.46, -0.06)], SKY)
    brush.polygon([(-0.9, 0), (0.74, 0), (0.94, 0.16), (0.94, 0.48), (-0.96, 0.48), (-0.96, 0.1)], colour, edge)
    for x in (-0.52, 0.5):
        brush.ellipse(x, 0.48, 0.26, 0.26, INK)
        brush.ellipse(x, 0.48, 0.11, 0.11, CREAM)
    brush.ellipse(0.84, 0.2, 0.09, 0.09, CREAM)


def umbrella(brush: Brush, colour: Rgb) -> None:
    edge = shade(colour, 0.45)
    brush.stroke([(0, -0.9), (0, 0.7), *arc(0.16, 0.72, 0.16, 0.2, 180, 0, 8)], 0.09, WOOD)
    scallops = [point for x in (0.64, 0, -0.64) for point in arc(x, 0.12, 0.32, 0.16, 360, 180, 7)]
    brush.polygon([*arc(0, 0.12, 0.96, 0.96, 180, 360, 20), *scallops], colour, edge)
    brush.polygon([(0, -0.84), *arc(0, 0.12, 0.32, 0.16, 360, 180, 7)], tint(colour, 0.42), edge)


def butterfly(brush: Brush, colour: Rgb) -> None:
    edge = shade(colour, 0.45)
    for side in (-1, 1):
        brush.ellipse(0.44 * side, 0.42, 0.36, 0.38, shade(colour, 0.15), edge)
        brush.ellipse(0.5 * side, -0.3, 0.46, 0.5, colour, edge)
        brush.ellipse(0.54 * side, -0.34, 0.2, 0.22, tint(colour, 0.6))
        brush.stroke([(0, -0.5), (0.2 * side, -0.96)], 0.06, INK)
    brush.ellipse(0, 0.06, 0.12, 0.66, INK)


SHAPES: dict[str, Callable[[Brush, Rgb], None]] = {
    shape.__name__: shape
    for shape in (
        ball, box, star, heart, moon, house, tree, fish, cup, boat, mushroom, flower, kite, car, umbrella,
        butterfly,
    )
}  # fmt: skip
