"""Pictures side by side, labelled: rows of prompts and seeds, columns of what is compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT = "#ffffff", "#1a1a1a", "#6b6b6b"


@dataclass(frozen=True)
class Row:
    """One line of a grid: what its pictures share, and one picture for each column, all of one size."""

    prompt: str
    note: str
    pictures: Sequence[Image.Image]


def draw_grid(rows: Sequence[Row], headings: Sequence[str]) -> Image.Image:
    """The pictures with their pixels unchanged, a heading above each column, a label at the left of each row.

    Long headings and prompts are wrapped; a row is as high as its picture or its label, whichever needs more.
    """
    width, height = (max(row.pictures[0].size[axis] for row in rows) for axis in (0, 1))
    type_size = min(max(14, width // 28), 40)
    font = ImageFont.load_default(type_size)
    line = round(type_size * 1.35)
    gap = type_size
    label_width = max(12 * type_size, width // 3)
    titles = [wrapped(heading, font, width) for heading in headings]
    labels = [wrapped(row.prompt, font, label_width) for row in rows]
    top = gap + max(map(len, titles)) * line + gap // 2
    heights = [max(height, (len(label) + 1) * line) for label in labels]
    lefts = [gap + label_width + gap + column * (width + gap) for column in range(len(headings))]

    grid = Image.new("RGB", (lefts[-1] + width + gap, top + sum(heights) + gap * len(rows)), PAPER)
    pen = ImageDraw.Draw(grid)
    for left, title in zip(lefts, titles, strict=True):
        _write(pen, (left, top - gap // 2 - len(title) * line), title, font, line, INK)
    for row, label, row_height in zip(rows, labels, heights, strict=True):
        _write(pen, (gap, top), label, font, line, INK)
        _write(pen, (gap, top + len(label) * line), [row.note], font, line, FAINT)
        for picture, left in zip(row.pictures, lefts, strict=True):
            grid.paste(picture, (left, top))
        top += row_height + gap
    return grid


def wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
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
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    line: int,
    colour: str,
) -> None:
    for number, text in enumerate(lines):
        pen.text((place[0], place[1] + number * line), text, fill=colour, font=font)
