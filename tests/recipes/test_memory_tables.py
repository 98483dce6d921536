"""README and docs show what was simulated, and the pictures can be drawn from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fluxtune.recipes.memory.__main__ import PAGES, PICTURES
from fluxtune.recipes.memory.tables import tables_of, with_tables

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / "memory.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_tables_are_those_of_the_figures(page: Path, figures: dict[str, Any]) -> None:
    text, tables = (ROOT / page).read_text(encoding="utf-8"), tables_of(figures)
    assert with_tables(text, tables) == text
    shown = [table for table in tables.values() if table in text]
    assert len(shown) == (1 if page.name == "README.md" else len(tables))


def test_a_table_is_replaced_and_the_text_around_it_stays() -> None:
    page = "Before.\n<!-- memory kept: made by X -->\n| old |\n<!-- /memory kept -->\nAfter.\n"
    assert with_tables(page, {"kept": "| new |", "phases": "| other |"}) == page.replace("old", "new")


def test_every_preset_has_a_row(figures: dict[str, Any]) -> None:
    rows = tables_of(figures)["presets"].splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(figures["presets"])


@pytest.mark.parametrize("file", PICTURES, ids=str)
def test_the_pictures_are_drawn_from_the_figures(file: Path, figures: dict[str, Any]) -> None:
    with Image.open(ROOT / file) as shipped:
        drawn = PICTURES[file](figures)
        assert shipped.size == drawn.size
        # Fonts of other versions of Pillow may differ by a little.
        different = sum(left != right for left, right in zip(_small(shipped), _small(drawn), strict=True))
    assert different < 0.02 * len(_small(drawn))
    assert len(set(_small(drawn))) > 4


def _small(picture: Image.Image) -> list[int]:
    """A coarse copy in a few shades of grey."""
    return [value // 32 for value in picture.convert("L").resize((160, 80)).tobytes()]
