from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFont

from fluxtune.sampling.grid import MOST_COLUMNS, PAPER, Row, draw_grid, draw_sheet, wrapped

LONG = "a photograph of the zorvex standing in front of a lighthouse at dusk with many gulls " * 4


def painted(colour: str, size: tuple[int, int] = (128, 96)) -> Image.Image:
    return Image.new("RGB", size, colour)


def places(grid: Image.Image, colour: str) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) around all pixels of a colour."""
    rgb = np.array(Image.new("RGB", (1, 1), colour))[0, 0]
    down, across = np.nonzero((np.asarray(grid) == rgb).all(axis=-1))
    return across.min(), down.min(), across.max() + 1, down.max() + 1


def test_every_picture_is_whole_and_in_its_column() -> None:
    rows = [
        Row("one", "seed 1", [painted("red"), painted("lime")]),
        Row("two", "seed 2", [painted("blue"), painted("aqua")]),
    ]
    grid = draw_grid(rows, ["without LoRA", "with mug"])
    red, lime, blue, aqua = (places(grid, colour) for colour in ("red", "lime", "blue", "aqua"))
    for left, top, right, bottom in (red, lime, blue, aqua):
        assert (right - left, bottom - top) == (128, 96)
    assert red[0] == blue[0] < lime[0] == aqua[0]
    assert red[1] == lime[1] < blue[1] == aqua[1]


@pytest.mark.parametrize("note", ["seed 1", f"seed {2**63 - 1}"])
@pytest.mark.parametrize("size", [(128, 128), (1024, 768)])
def test_a_long_prompt_or_seed_makes_its_row_higher_and_touches_no_picture(size: tuple[int, int], note: str) -> None:
    rows = [Row(LONG, note, [painted("red", size)]), Row("short", note, [painted("blue", size)])]
    grid = draw_grid(rows, ["with mug"])
    left, top, right, bottom = places(grid, "red")
    assert (right - left, bottom - top) == size
    label = np.asarray(grid.crop((0, top, left, places(grid, "blue")[1])))
    paper = np.array(Image.new("RGB", (1, 1), PAPER))[0, 0]
    written = np.nonzero((label != paper).any(axis=(1, 2)))[0]
    assert written.size > 0
    assert written.max() < label.shape[0] - 1
    margin = np.nonzero((label != paper).any(axis=(0, 2)))[0]
    assert margin.max() < left - 1


def test_lines_never_exceed_the_width_and_no_word_is_lost() -> None:
    font = ImageFont.load_default(14)
    text = LONG + " " + "x" * 200
    lines = wrapped(text, font, 150)
    assert all(font.getlength(line) <= 150 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_many_columns_go_on_below_and_the_title_stands_above_all() -> None:
    colours = [f"#{index:02x}40ff" for index in range(0, 250, 25)]
    row = Row("one", "seed 1", [painted(colour, (64, 64)) for colour in colours])
    grid = draw_sheet([row], [f"step {index}" for index in range(10)], "a title")
    boxes = [places(grid, colour) for colour in colours]
    assert len({top for _, top, _, _ in boxes[:MOST_COLUMNS]}) == 1
    assert boxes[0][1] > 0 and boxes[MOST_COLUMNS][1] > boxes[0][3] and boxes[MOST_COLUMNS][0] == boxes[0][0]
    plain = draw_sheet([row], [f"step {index}" for index in range(10)])
    assert grid.height > plain.height


def test_a_sheet_that_would_be_too_large_shows_its_pictures_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxtune.sampling.grid.MOST_PIXELS", 200_000)
    rows = [Row("one", "", [painted("red", (400, 300)), painted("lime", (300, 400))])]
    grid = draw_sheet(rows, ["a", "b"])
    left, top, right, bottom = places(grid, "red")
    assert 0 < right - left < 400
    assert (right - left) / (bottom - top) == pytest.approx(4 / 3, rel=0.02)
    assert grid.width * grid.height < 300_000


def test_pictures_of_several_sizes_stay_apart() -> None:
    rows = [Row("one", "", [painted("red", (64, 64)), painted("lime", (128, 32))])]
    grid = draw_sheet(rows, ["a", "b"])
    red, lime = places(grid, "red"), places(grid, "lime")
    assert (red[2] - red[0], lime[2] - lime[0]) == (64, 128)
    assert lime[0] >= red[0] + 128
