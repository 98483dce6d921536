"""The layouts that a data set can be written in."""

from __future__ import annotations

from enum import StrEnum


class Layout(StrEnum):
    """Whose convention a data set follows."""

    FOLDER = "folder"
    METADATA = "metadata"
    KOHYA = "kohya"
    AI_TOOLKIT = "ai-toolkit"
    SIMPLETUNER = "simpletuner"
    ONETRAINER = "onetrainer"
    DIFFUSERS = "diffusers"
