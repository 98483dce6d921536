"""Our settings as they are read out of another trainer's document: much is said of each folder there, of all here."""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from typing import Any

from fluxtune.config.descriptions.documents import Document
from fluxtune.config.documents import Layer
from fluxtune.config.positions import KeyPath

_SIDES = range(64, 4097)
_LARGEST = 65536
"""No picture has more pixels in a row: what is larger is a slip."""


class Draft:
    """Rows and shared settings of a data set, gathered folder by folder."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self._rows: list[dict[str, Any]] = []
        self._places: list[KeyPath] = []
        self._resolutions: list[list[int]] = []
        self._shared: dict[str, list[tuple[object, KeyPath | None]]] = {}

    def row(self, place: KeyPath, values: dict[str, Any], resolution: Iterable[int] = ()) -> None:
        """A folder, and the resolutions that it is trained at there; a folder that is listed once for each is one.

        One that is listed twice for the same resolution is seen twice as often, there as here.
        """
        row = {key: value for key, value in values.items() if value is not None}
        sides = list(dict.fromkeys(resolution))
        for known, own in zip(self._rows, self._resolutions, strict=True):
            if known == row and sides and own and set(own).isdisjoint(sides):
                own += sides
                return
        self._rows.append(row)
        self._places.append(place)
        self._resolutions.append(sides)

    def share(self, key: str, value: object, place: KeyPath | None) -> None:
        """A setting that each folder has there and all have in common here; without ``place`` it is a default."""
        self._shared.setdefault(key, []).append((value, place))

    def layer(self) -> Layer:
        """All of it as a layer of settings, whose origins are lines of the document."""
        dataset: dict[str, Any] = {"folders": self._rows}
        lines: dict[KeyPath, int] = {}
        content = self.document.content
        for key, given in self._shared.items():
            places = [place for _, place in given if place is not None]
            if not places:
                continue
            if any(value != given[0][0] for value, _ in given):
                message = f"differs from folder to folder; here dataset.{key} is one for all, and is not set by this"
                self.document.warn(places[0], message)
                continue
            dataset[key] = given[0][0]
            lines |= _line(content, ("dataset", key), places[0])
        sides = list(dict.fromkeys(side for own in self._resolutions for side in own))
        if sides:
            dataset["resolution"] = sides
            lines |= _line(content, ("dataset", "resolution"), self._places[0])
        if any(set(own) != set(sides) for own in self._resolutions):
            message = f"the resolutions differ from folder to folder; here all are trained at {sides}"
            self.document.warn(self._places[0], message)
        for index, place in enumerate(self._places):
            lines |= _line(content, ("dataset", "folders", index), place)
        return Layer(content.source, {"dataset": dataset}, content.folder, lines)

    def side(self, place: KeyPath, wanted: float, multiple: int = 16) -> int:
        """The nearest resolution that there is here; said where it is another one."""
        side = min(max(round(wanted / multiple) * multiple, _SIDES.start), _SIDES.stop - 1)
        if side != wanted and multiple == 16:
            self.document.warn(place, f"a resolution of {wanted:g} px becomes {side}")
        return side

    def square(self, place: KeyPath, width: int, height: int) -> int:
        """The side of the square with as many pixels."""
        if width != height:
            self.document.warn(place, f"{width} x {height} becomes the square with as many pixels: buckets keep shapes")
        return self.side(place, round(sqrt(width * height)))


def is_side(value: object) -> bool:
    """Whether a value is a number of pixels."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _LARGEST


def _line(content: Layer, key: KeyPath, place: KeyPath) -> dict[KeyPath, int]:
    """The line of the innermost table around a place that has one, as that of a key of ours."""
    known = next((place[:end] for end in range(len(place), 0, -1) if place[:end] in content.lines), None)
    return {} if known is None else {key: content.lines[known]}
