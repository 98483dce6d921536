"""Critters: a family of mascots, the invented nouns that each name one of them, and the demo's subject."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from random import Random

from fluxtune.nano.brush import Brush, Point, arc
from fluxtune.nano.palette import COLOURS, CREAM, INK, Rgb, shade

FORMS: dict[str, Callable[[float], float]] = {
    # Half the body's width at height y in [-1, 1].
    "round": lambda y: 0.92 * sqrt(max(0.0, 1 - y * y)),
    "egg": lambda y: (0.72 + 0.1 * y) * sqrt(max(0.0, 1 - y * y)),
    "square": lambda y: 0.84 * max(0.0, 1 - y**6) ** (1 / 6),
    "pear": lambda y: (0.66 + 0.32 * y) * max(0.0, 1 - y**4) ** 0.5,
}
PATTERNS = ("plain", "stripes", "dots", "patch")
TOPS = ("ears", "horns", "antenna")
MOUTHS = ("smile", "open", "tooth")
HEIGHTS = [-1 + i / 10 for i in range(21)]


@dataclass(frozen=True)
class Critter:
    """One design: what stays the same in every picture of it."""

    form: str
    colour: str
    second_colour: str
    pattern: str
    top: str
    eyes: int
    mouth: str


@dataclass(frozen=True)
class Pose:
    """What changes from picture to picture: arms from down (-1) to up (1), gaze to the left (-1) or right (1)."""

    arms: float = 0.0
    gaze: float = 0.0


SUBJECT = Critter("egg", "teal", "orange", "stripes", "antenna", 1, "smile")


def is_reserved(critter: Critter) -> bool:
    """Whether the design is too near the demo's subject for pretraining to show it."""
    return critter.colour == SUBJECT.colour and critter.second_colour == SUBJECT.second_colour


def random_critter(random: Random) -> Critter:
    """A design that pretraining may show."""
    while True:
        colour, second_colour = random.sample(list(COLOURS), 2)
        critter = Critter(
            form=random.choice(list(FORMS)),
            colour=colour,
            second_colour=second_colour,
            pattern=random.choice(PATTERNS),
            top=random.choice(TOPS),
            eyes=random.choice((1, 2)),
            mouth=random.choice(MOUTHS),
        )
        if not is_reserved(critter):
            return critter


def invented_noun(random: Random) -> str:
    """A word that names nothing yet: two or three open syllables, sometimes closed by a consonant."""
    syllables = random.choice((2, 2, 3))
    word = "".join(random.choice("bdfgklmnprstvwz") + random.choice("aeiou") for _ in range(syllables))
    return word + random.choice(("", "", "x", "k", "n", "r", "p", "g"))


def _dictionary(count: int) -> dict[str, Critter]:
    random = Random("nano nouns")
    nouns: dict[str, Critter] = {}
    while len(nouns) < count:
        noun = invented_noun(random)
        nouns.setdefault(noun, random_critter(Random(f"nano noun {noun}")))
    return nouns


NOUNS = _dictionary(300)
"""Invented nouns, each bound for good to the design that its letters pick."""


def draw_critter(brush: Brush, critter: Critter, pose: Pose) -> None:
    """Feet, top, arms, body, pattern, face: from back to front."""
    width_at = FORMS[critter.form]
    colour, second = COLOURS[critter.colour], COLOURS[critter.second_colour]
    edge = shade(colour, 0.5)
    _feet_and_arms(brush, width_at, colour, second, pose)
    _TOPS[critter.top](brush, colour, second)
    brush.polygon(_slice(width_at, -1, 1), colour, edge)
    _pattern(brush, critter.pattern, width_at, second)
    _eyes(brush, critter.eyes, pose.gaze)
    _mouth(brush, critter.mouth)


def _slice(width_at: Callable[[float], float], top: float, bottom: float) -> list[Point]:
    heights = [top, *(y for y in HEIGHTS if top < y < bottom), bottom]
    right = [(0.78 * width_at(y), _body_y(y)) for y in heights]
    return right + [(-x, y) for x, y in reversed(right)]


def _body_y(y: float) -> float:
    """The body leaves room for what it wears on top: it spans [-0.62, 0.86]."""
    return 0.12 + 0.74 * y


def _feet_and_arms(brush: Brush, width_at: Callable[[float], float], colour: Rgb, second: Rgb, pose: Pose) -> None:
    reach = 0.78 * width_at(0.2)
    for side in (-1, 1):
        brush.ellipse(0.3 * side, 0.88, 0.22, 0.12, second, shade(second, 0.5))
        hand = (side * (reach + 0.2), 0.3 - 0.34 * pose.arms)
        brush.stroke([(side * (reach - 0.12), 0.26), hand], 0.15, shade(colour, 0.22))
        brush.ellipse(hand[0], hand[1], 0.1, 0.1, shade(colour, 0.22))


def _ears(brush: Brush, colour: Rgb, second: Rgb) -> None:
    for side in (-1, 1):
        brush.ellipse(0.36 * side, -0.6, 0.2, 0.34, colour, shade(colour, 0.5))
        brush.ellipse(0.36 * side, -0.62, 0.1, 0.22, second)


def _horns(brush: Brush, colour: Rgb, second: Rgb) -> None:
    for side in (-1, 1):
        horn = [(0.1 * side, -0.44), (0.52 * side, -0.98), (0.5 * side, -0.3)]
        brush.polygon(horn, second, shade(second, 0.5))


def _antenna(brush: Brush, colour: Rgb, second: Rgb) -> None:
    brush.stroke([(0, -0.5), (0.02, -0.84)], 0.08, INK)
    brush.ellipse(0.02, -0.84, 0.17, 0.17, second, shade(second, 0.5))


_TOPS: dict[str, Callable[[Brush, Rgb, Rgb], None]] = {"ears": _ears, "horns": _horns, "antenna": _antenna}


def _pattern(brush: Brush, pattern: str, width_at: Callable[[float], float], second: Rgb) -> None:
    if pattern == "stripes":
        for top, bottom in ((-0.78, -0.54), (0.1, 0.34), (0.58, 0.82)):
            brush.polygon(_slice(width_at, top, bottom), second)
    elif pattern == "dots":
        for x, y in ((-0.5, 0.16), (0.52, 0.3), (-0.16, 0.62), (0.34, 0.7), (0.3, -0.66), (-0.42, -0.5)):
            brush.ellipse(0.78 * x * width_at(y) / 0.7, _body_y(y), 0.11, 0.11, second)
    elif pattern == "patch":
        brush.ellipse(0, 0.48, 0.52 * width_at(0.5), 0.3, second)


def _eyes(brush: Brush, count: int, gaze: float) -> None:
    places, radius = ((0.0,), 0.25) if count == 1 else ((-0.22, 0.22), 0.17)
    for x in places:
        brush.ellipse(x, -0.18, radius, radius, CREAM, INK)
        brush.ellipse(x + 0.4 * radius * gaze, -0.17, 0.5 * radius, 0.55 * radius, INK)


def _mouth(brush: Brush, mouth: str) -> None:
    if mouth == "smile":
        brush.stroke(arc(0, 0.2, 0.22, 0.14, 10, 170, 9), 0.08, INK)
    elif mouth == "open":
        brush.ellipse(0, 0.27, 0.15, 0.12, INK)
    else:
        brush.stroke([(-0.22, 0.24), (0.22, 0.24)], 0.08, INK)
        brush.polygon([(0.02, 0.26), (0.18, 0.26), (0.1, 0.4)], CREAM, INK)
