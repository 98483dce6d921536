"""Drawing in a thing's own coordinates: x to the right and y down, the thing filling about [-1, 1] twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import cos, pi, sin

from PIL import ImageDraw

from fluxtune.nano.palette import Rgb

Point = tuple[float, float]

CIRCLE = tuple((cos(2 * pi * i / 28), sin(2 * pi * i / 28)) for i in range(28))


class Brush:
    """Places a thing (position, radius, tilt, mirrored) on an image and draws its parts.

    With `flat`, every part is drawn in that one value: the thing's silhouette, for label maps.
    """

    def __init__(
        self,
        draw: ImageDraw.ImageDraw,
        x: float,
        y: float,
        radius: float,
        tilt: float = 0.0,
        mirrored: bool = False,
        flat: int | None = None,
    ) -> None:
        self._draw = draw
        self._x, self._y = x, y
        self._across = -radius if mirrored else radius
        self._down = radius
        self._cos, self._sin = cos(tilt), sin(tilt)
        self._flat = flat

    def polygon(self, points: Iterable[Point], fill: Rgb, outline: Rgb | None = None) -> None:
        """A filled polygon, with a thin outline when a colour for it is given."""
        placed = self._place(points)
        self._draw.polygon(placed, fill=self._ink(fill))
        if outline is not None:
            self._draw.line([*placed, placed[0]], fill=self._ink(outline), width=self._width(0.055))

    def ellipse(self, x: float, y: float, across: float, down: float, fill: Rgb, outline: Rgb | None = None) -> None:
        """A filled ellipse about (x, y) with the two radii given."""
        self.polygon([(x + across * cosine, y + down * sine) for cosine, sine in CIRCLE], fill, outline)

    def stroke(self, points: Sequence[Point], width: float, colour: Rgb) -> None:
        """A line through the points, `width` in the thing's own units."""
        self._draw.line(self._place(points), fill=self._ink(colour), width=self._width(width), joint="curve")

    def _place(self, points: Iterable[Point]) -> list[Point]:
        across, down, cosine, sine = self._across, self._down, self._cos, self._sin
        return [
            (
                self._x + across * x * cosine - down * y * sine,
                self._y + across * x * sine + down * y * cosine,
            )
            for x, y in points
        ]

    def _width(self, width: float) -> int:
        return max(1, round(width * self._down))

    def _ink(self, colour: Rgb) -> Rgb | int:
        return colour if self._flat is None else self._flat


def arc(x: float, y: float, across: float, down: float, start: float, end: float, count: int = 14) -> list[Point]:
    """Points along an ellipse from `start` to `end` degrees (0 is right, 90 is down)."""
    angles = (pi / 180 * (start + (end - start) * i / (count - 1)) for i in range(count))
    return [(x + across * cos(angle), y + down * sin(angle)) for angle in angles]
