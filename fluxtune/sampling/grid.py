"""Pictures side by side, labelled: rows of prompts and seeds, columns of what is compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT = "#ffffff", "#1a1a1a", "#6b6b6b"
MOST_COLUMNS = 8
"""Side by side; further columns go on below."""
MOST_PIXELS = 2**27
"""Of a sheet: 400 MB in memory. Pictures are shown smaller where it would be more."""

_Font: TypeAlias = "ImageFont.FreeTypeFont | ImageFont.ImageFont"


@dataclass(frozen=True)
class Row:
    """One line of a grid: what its pictures share, and one picture for each column, or its file."""

    label: str
    note: str
    pictures: Sequence[Image.Image | Path]


def draw_sheet(rows: Sequence[Row], headings: Sequence[str], title: str = "") -> Image.Image:
    """The pictures as ``draw_grid`` draws them, under a title, of many columns the further ones below the first.

    A sheet of more than ``MOST_PIXELS`` shows all of them smaller by the same factor.
    """
    width, height = _largest(rows)
    across = min(len(headings), MOST_COLUMNS)
    bands = -(-len(headings) // across)
    factor = min(1.0, math.sqrt(MOST_PIXELS / (width * height * (across + 1) * bands * len(rows))))
    cell = (max(1, round(width * factor)), max(1, round(height * factor)))
    grids = []
    for start in range(0, len(headings), across):
        part = [Row(row.label, row.note, row.pictures[start : start + across]) for row in rows]
        grids.append(draw_grid(part, headings[start : start + across], cell))
    return _stacked(grids, title, _font(cell[0]))


def draw_grid(rows: Sequence[Row], headings: Sequence[str], cell: tuple[int, int] | None = None) -> Image.Image:
    """The pictures with their pixels unchanged, a heading above each column, a label at the left of each row.

    Long headings and labels are wrapped; a row is as high as its picture or its label, whichever needs more.

    Args:
        cell: (width, height) that pictures have room in; larger ones are made smaller. None takes the largest's size.
    """
    width, height = cell = cell or _largest(rows)
    font = _font(width)
    gap, line = round(font.size), _line(font)
    label_width = max(12 * gap, width // 3)
    titles = [wrapped(heading, font, width) for heading in headings]
    labels = [wrapped(row.label, font, label_width) for row in rows]
    top = gap + max(map(len, titles)) * line + gap // 2
    notes = [wrapped(row.note, font, label_width) for row in rows]
    heights = [max(height, (len(label) + len(note)) * line) for label, note in zip(labels, notes, strict=True)]
    lefts = [gap + label_width + gap + column * (width + gap) for column in range(len(headings))]

    grid = Image.new("RGB", (lefts[-1] + width + gap, top + sum(heights) + gap * len(rows)), PAPER)
    pen = ImageDraw.Draw(grid)
    for left, title in zip(lefts, titles, strict=True):
        _write(pen, (left, top - gap // 2 - len(title) * line), title, font, INK)
    for row, label, note, row_height in zip(rows, labels, notes, heights, strict=True):
        _write(pen, (gap, top), label, font, INK)
        _write(pen, (gap, top + len(label) * line), note, font, FAINT)
        for picture, left in zip(row.pictures, lefts, strict=True):
            grid.paste(_within(picture, cell), (left, top))
        top += row_height + gap
    return grid


def _stacked(grids: Sequence[Image.Image], title: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Grids below each other, under a title."""
    if len(grids) == 1 and not title:
        return grids[0]
    gap, line = round(font.size), _line(font)
    width = max(grid.width for grid in grids)
    lines = wrapped(title, font, width - 2 * gap) if title else []
    top = gap + len(lines) * line if lines else 0
    sheet = Image.new("RGB", (width, top + sum(grid.height for grid in grids)), PAPER)
    _write(ImageDraw.Draw(sheet), (gap, gap), lines, font, INK)
    for grid in grids:
        sheet.paste(grid, (0, top))
        top += grid.height
    return sheet


def _largest(rows: Sequence[Row]) -> tuple[int, int]:
    sizes = {_opened(picture).size for row in rows for picture in row.pictures}
    return max(size[0] for size in sizes), max(size[1] for size in sizes)


def _within(picture: Image.Image | Path, cell: tuple[int, int]) -> Image.Image:
    opened = _opened(picture)
    factor = min(1.0, cell[0] / opened.width, cell[1] / opened.height)
    size = (max(1, round(opened.width * factor)), max(1, round(opened.height * factor)))
    return opened if factor == 1.0 else opened.resize(size, Image.Resampling.LANCZOS)


def _opened(picture: Image.Image | Path) -> Image.Image:
    return Image.open(picture) if isinstance(picture, Path) else picture


def _font(width: int) -> ImageFont.FreeTypeFont:
    """Of a size that suits pictures of a width; Pillow's own, which is everywhere the same."""
    font = ImageFont.load_default(min(max(14, width // 28), 40))
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow is built without FreeType"
    return font


def _line(font: ImageFont.FreeTypeFont) -> int:
    return round(font.size * 1.35)


def wrapped(text: str, font: _Font, width: int) -> list[str]:
    """``text`` in lines of at most ``width`` pixels, broken between words, and inside a word that is too long."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".lstrip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _write(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    lines: list[str],
    font: ImageFont.FreeTypeFont,
    colour: str,
) -> None:
    for number, text in enumerate(lines):
        pen.text((place[0], place[1] + number * _line(font)), text, fill=colour, font=font)
