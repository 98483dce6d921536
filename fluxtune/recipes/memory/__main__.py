"""`python -m fluxtune.recipes.memory`: plans every card preset and says in README and docs what it takes.

To be run in a clone of the repository. Nothing is loaded and no card is needed: the steps are simulated.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from fluxtune.environment.device import quiet_libraries
from fluxtune.files import write_text, write_with
from fluxtune.recipes.memory.figures import COMMAND, all_figures
from fluxtune.recipes.memory.pictures import blocks_picture, step_picture
from fluxtune.recipes.memory.tables import tables_of, with_tables

RESULTS = Path("benchmarks/results/memory.json")
PAGES = (Path("README.md"), Path("docs/memory.md"))
PICTURES = {Path("docs/memory-step.png"): step_picture, Path("docs/memory-blocks.png"): blocks_picture}


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument(
        "--redraw", action="store_true", help="simulate nothing: tables and pictures of the figures that are there"
    )
    options = parser.parse_args()
    quiet_libraries()
    if not options.redraw:
        text = json.dumps(all_figures(), indent=1)
        # A row of numbers is a line.
        write_text(RESULTS, re.sub(r"\[[\d,\s]+\]", lambda row: re.sub(r"\s+", " ", row[0]), text) + "\n")
    figures = json.loads(RESULTS.read_text(encoding="utf-8"))
    for page in PAGES:
        write_text(page, with_tables(page.read_text(encoding="utf-8"), tables_of(figures)))
    for file, draw in PICTURES.items():
        write_with(file, lambda part, draw=draw: draw(figures).save(part, "PNG", optimize=True))  # type: ignore[misc]


if __name__ == "__main__":
    main()
