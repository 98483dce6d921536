"""The demo data set: the subject that pretraining never saw, in sixteen pictures without captions."""

from __future__ import annotations

from pathlib import Path

from fluxtune.nano.painter import paint
from fluxtune.nano.scenes import Background, subject_scene

SEED = 7
SCALE = 2
"""Larger than they are trained at, as people's pictures are, so that a crop of them is still sharp."""
ASPECTS = ((128, 128), (144, 112), (128, 128), (112, 144), (128, 128), (160, 160))
# Size and place of the subject, kind and colour of the background. The others of these stay for judging what was
# learned: most of the backgrounds, and `PLACEMENTS` of `recipes/demo.py`.
PICTURES = (
    ("large", "", "plain", "pink"),
    ("small", "left", "striped", "blue"),
    ("", "bottom", "dotted", "yellow"),
    ("small", "bottom", "hilly", "purple"),
    ("large", "top", "plain", "green"),
    ("", "", "striped", "gray"),
    ("", "left", "dotted", "white"),
    ("small", "top", "hilly", "yellow"),
    ("", "right", "plain", "blue"),
    ("large", "bottom", "striped", "pink"),
    ("small", "bottom", "dotted", "navy"),
    ("", "bottom", "hilly", "green"),
    ("small", "left", "plain", "white"),
    ("large", "", "striped", "yellow"),
    ("", "right", "dotted", "green"),
    ("small", "top", "hilly", "gray"),
)
BACKGROUNDS = tuple((kind, colour) for _, _, kind, colour in PICTURES)


def write_demo(folder: Path) -> None:
    """Writes `01.png` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, (size, place, kind, colour) in enumerate(PICTURES):
        background = Background(kind, colour, (index * 0.37) % 1)
        scene = subject_scene(SEED, index, ASPECTS[index % len(ASPECTS)], background, placement=(size, place))
        paint(scene, SCALE).save(folder / f"{index + 1:02d}.png", optimize=True)
