"""The names of the trainers that settings are written for; apart from their tables, which take longer to load."""

from __future__ import annotations

from enum import StrEnum


class Target(StrEnum):
    """Whose settings are written."""

    AI_TOOLKIT = "ai-toolkit"
    SIMPLETUNER = "simpletuner"
    SD_SCRIPTS = "sd-scripts"
    ONETRAINER = "onetrainer"
    DIFFUSERS = "diffusers"
