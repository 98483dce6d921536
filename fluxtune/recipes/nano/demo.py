"""The demo data set: the subject that pretraining never saw, in twelve pictures without captions."""

from __future__ import annotations

from pathlib import Path

from fluxtune.nano.painter import paint
from fluxtune.nano.scenes import Background, subject_scene

SEED = 7
SCALE = 2
"""Larger than they are trained at, as people's pictures are, so that a crop of them is still sharp."""
ASPECTS = ((128, 128), (144, 112), (128, 128), (112, 144), (128, 128), (160, 160))
# Two pairings of background kind and colour each way; the others stay for judging what was learned.
BACKGROUNDS = (
    ("plain", "pink"),
    ("striped", "blue"),
    ("dotted", "yellow"),
    ("hilly", "purple"),
    ("plain", "green"),
    ("striped", "gray"),
    ("dotted", "white"),
    ("hilly", "yellow"),
    ("plain", "blue"),
    ("striped", "pink"),
    ("dotted", "navy"),
    ("hilly", "green"),
)


def write_demo(folder: Path) -> None:
    """Writes `01.png` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, (kind, colour) in enumerate(BACKGROUNDS):
        background = Background(kind, colour, (index * 0.37) % 1)
        scene = subject_scene(SEED, index, ASPECTS[index % len(ASPECTS)], background)
        paint(scene, SCALE).save(folder / f"{index + 1:02d}.png", optimize=True)
