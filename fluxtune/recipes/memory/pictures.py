"""Pictures of what was simulated: the memory of a step as time goes by, and what blocks that keep more add to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_SCALE = 2
"""Drawn so many times as large, then made smaller: smooth edges."""
_INK, _FAINT, _GRID, _PAPER = "#1f2328", "#59636e", "#e4e8ec", "#ffffff"
_LAYERS = {
    "base weights": ("#46627f", ("weights",)),
    "LoRA, its gradients and optimizer": ("#8a6fb0", ("adapter", "gradients", "optimizer")),
    "kept for the backward": ("#e0a03c", ("activations", "inputs")),
    "in work": ("#cf5c4c", ("temporaries",)),
}
"""From below: name -> colour and categories."""
_LINE, _POINT = "#46627f", "#cf5c4c"


@dataclass(frozen=True)
class _Axes:
    """A plot's place in pixels, and what its sides stand for."""

    left: float
    top: float
    right: float
    bottom: float
    wide: float
    high: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point is drawn."""
        across, up = (self.right - self.left) * x / self.wide, (self.bottom - self.top) * y / self.high
        return self.left + across, self.bottom - up


@dataclass
class _Sheet:
    """A picture in the making; lengths are those of the finished picture."""

    width: int
    height: int
    _image: Image.Image = field(init=False)

    def __post_init__(self) -> None:
        self._image = Image.new("RGB", (self.width * _SCALE, self.height * _SCALE), _PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def text(self, at: tuple[float, float], words: str, size: int = 26, colour: str = _INK, anchor: str = "la") -> None:
        """Words; ``anchor`` as Pillow has it."""
        self._draw.text(_scaled(at), words, fill=colour, font=ImageFont.load_default(size * _SCALE), anchor=anchor)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1.0, dash: float = 0.0) -> None:
        """A line through points; with ``dash``, two points and gaps."""
        if not dash:
            self._draw.line([_scaled(each) for each in points], fill=colour, width=round(width * _SCALE), joint="curve")
            return
        (left, top), (right, bottom) = points
        number = int(max(abs(right - left), abs(bottom - top)) // dash) or 1
        for index in range(0, number, 2):
            ends = [index / number, min(1.0, (index + 1) / number)]
            self.line([(left + (right - left) * each, top + (bottom - top) * each) for each in ends], colour, width)

    def area(self, points: Sequence[tuple[float, float]], colour: str) -> None:
        """A filled polygon."""
        self._draw.polygon([_scaled(each) for each in points], fill=colour)

    def dot(self, at: tuple[float, float], radius: float, colour: str) -> None:
        """A filled circle with a rim."""
        for grown, fill in ((radius + 2.5, _PAPER), (radius, colour)):
            corners = [(at[0] - grown, at[1] - grown), (at[0] + grown, at[1] + grown)]
            self._draw.ellipse([_scaled(each) for each in corners], fill=fill)

    def finished(self) -> Image.Image:
        """The picture."""
        return self._image.resize((self.width, self.height), Image.Resampling.LANCZOS)


def _scaled(at: tuple[float, float]) -> tuple[float, float]:
    return at[0] * _SCALE, at[1] * _SCALE


def step_picture(figures: Mapping[str, Any]) -> Image.Image:
    """Stacked areas for each step, side by side: what is in memory while it runs."""
    steps, sheet = figures["steps"], _Sheet(1600, 830)
    highest = max(max(_totals(step)) for step in steps.values())
    top = 4 * (int(highest / 4) + 1)
    sheet.text((84, 28), "Memory of one training step", 40)
    _legend(sheet, (84, 82))
    panel = (1600 - 84 - 40 - 48) / len(steps)
    for index, (title, step) in enumerate(steps.items()):
        left = 84 + index * (panel + 48)
        _step(sheet, _Axes(left, 200, left + panel, 720, len(_totals(step)) - 1, top), title, step, top, index == 0)
    sheet.text((84, 786), "FLUX.1-dev in 8 bits, 1024 px, rank 16, simulated operation by operation.", 24, _FAINT)
    return sheet.finished()


def _totals(step: Mapping[str, Any]) -> list[float]:
    """GiB, moment by moment."""
    return [sum(column) / 1024 for column in zip(*step["mib"].values(), strict=True)]


def _legend(sheet: _Sheet, at: tuple[float, float]) -> None:
    left, top = at
    for name, (colour, _) in _LAYERS.items():
        sheet.area([(left, top + 3), (left + 22, top + 3), (left + 22, top + 25), (left, top + 25)], colour)
        sheet.text((left + 32, top + 2), name, 26)
        left += 32 + ImageFont.load_default(26).getlength(name) + 36


def _step(sheet: _Sheet, axes: _Axes, title: str, step: Mapping[str, Any], top: int, has_labels: bool) -> None:
    totals = _totals(step)
    sheet.text((axes.left, 146), f"{title}: {max(totals):.1f} GiB", 30)
    _rules(sheet, axes, range(0, top + 1, 4), has_labels)
    below = [0.0] * len(totals)
    for colour, categories in _LAYERS.values():
        rows = [step["mib"][name] for name in categories if name in step["mib"]]
        above = [start + sum(column) / 1024 for start, column in zip(below, zip(*rows, strict=True), strict=True)]
        outline = [axes.at(x, y) for x, y in enumerate(above)] + [axes.at(x, y) for x, y in enumerate(below)][::-1]
        sheet.area(outline, colour)
        below = above
    begins = [*step["begins"].items(), ("", len(totals) - 1)]
    for (phase, begin), (_, end) in pairwise(begins):
        sheet.line([axes.at(begin, 0), axes.at(begin, top)], _FAINT, 1.0, dash=6)
        # The update is short: its name ends where the step ends.
        short = end - begin < len(totals) / 8
        place = axes.at(end if short else (begin + end) / 2, 0)
        sheet.text((place[0], axes.bottom + 10), phase, 24, _FAINT, "ra" if short else "ma")
    sheet.line([axes.at(0, 0), axes.at(axes.wide, 0)], _INK, 1.5)


def _rules(sheet: _Sheet, axes: _Axes, heights: Sequence[int], has_labels: bool) -> None:
    for height in heights:
        sheet.line([axes.at(0, height), axes.at(axes.wide, height)], _GRID)
        if has_labels:
            place = axes.at(0, height)
            sheet.text((place[0] - 14, place[1]), str(height), 24, _FAINT, "rm")
    if has_labels:
        sheet.text((axes.left - 14, axes.top - 22), "GiB", 24, _FAINT, "rm")


def blocks_picture(figures: Mapping[str, Any]) -> Image.Image:
    """The line that adding up foretells, and the steps that were simulated at full depth."""
    points, sheet = figures["kept"], _Sheet(1600, 780)
    blocks = points[-1]["blocks"]
    top = 4 * (int(max(each["simulated"] for each in points) / 2**30 / 4) + 1)
    axes = _Axes(84, 160, 1540, 650, blocks, top)
    sheet.text((84, 28), "Kept blocks add up", 40)
    _rules(sheet, axes, range(0, top + 1, 4), has_labels=True)
    line = [axes.at(each["blocks"], each["foretold"] / 2**30) for each in points]
    sheet.line(line, _LINE, 3)
    for each in points:
        place = axes.at(each["blocks"], each["simulated"] / 2**30)
        sheet.dot(place, 8, _POINT)
        beside = "la" if each["blocks"] == 0 else "ra" if each["blocks"] == blocks else "ma"
        sheet.text((place[0], place[1] + 18), f"{each['simulated'] / 2**30:.1f}", 24, _INK, beside)
        sheet.text((place[0], axes.bottom + 10), str(each["blocks"]), 24, _FAINT, "ma")
    sheet.line([axes.at(0, 0), axes.at(blocks, 0)], _INK, 1.5)
    middle = (axes.left + axes.right) / 2
    sheet.text((middle, axes.bottom + 42), f"of {blocks} blocks keep their matrix products", 26, _FAINT, "ma")
    sheet.line([(84, 98), (120, 98)], _LINE, 3)
    sheet.text((132, 98), "peak, foretold by adding up what blocks keep", 26, anchor="lm")
    start = 132 + ImageFont.load_default(26).getlength("peak, foretold by adding up what blocks keep") + 44
    sheet.dot((start, 98), 8, _POINT)
    sheet.text((start + 20, 98), "peak, the whole model simulated", 26, anchor="lm")
    sheet.text((84, 738), "FLUX.1-dev in 8 bits, 1024 px, rank 16.", 24, _FAINT)
    return sheet.finished()
