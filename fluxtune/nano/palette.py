"""The colours of the embedded model's pictures, by the names that captions use."""

from __future__ import annotations

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (220, 45, 48),
    "orange": (247, 136, 28),
    "yellow": (253, 213, 44),
    "green": (66, 168, 62),
    "teal": (16, 158, 158),
    "blue": (43, 92, 214),
    "purple": (134, 62, 184),
    "pink": (248, 118, 176),
    "brown": (136, 84, 46),
    "white": (252, 252, 250),
}

# Backgrounds are softer than the things on them, so that a thing stands out even where the hues are near.
BACKGROUND_COLOURS: dict[str, Rgb] = {
    "white": (240, 240, 236),
    "gray": (168, 172, 180),
    "pink": (252, 204, 218),
    "yellow": (252, 236, 164),
    "green": (182, 226, 170),
    "blue": (166, 210, 244),
    "purple": (206, 184, 236),
    "navy": (48, 60, 104),
}
BACKGROUND_KINDS = ("plain", "striped", "dotted", "hilly")

INK: Rgb = (50, 42, 56)
CREAM: Rgb = (255, 247, 228)
WOOD: Rgb = (128, 88, 56)
LEAF: Rgb = (74, 150, 70)
SKY: Rgb = (196, 228, 246)


def shade(colour: Rgb, amount: float) -> Rgb:
    """The colour moved towards black by `amount` in [0, 1]."""
    red, green, blue = colour
    keep = 1 - amount
    return int(red * keep), int(green * keep), int(blue * keep)


def tint(colour: Rgb, amount: float) -> Rgb:
    """The colour moved towards white by `amount` in [0, 1]."""
    red, green, blue = colour
    return (
        int(red + (255 - red) * amount),
        int(green + (255 - green) * amount),
        int(blue + (255 - blue) * amount),
    )
