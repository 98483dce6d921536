"""The trainers that are known."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from fluxtune.handover import ai_toolkit, diffusers_script, onetrainer, sd_scripts, simpletuner
from fluxtune.handover.rules import Trainer


class Target(StrEnum):
    """Whose settings are written."""

    AI_TOOLKIT = "ai-toolkit"
    SIMPLETUNER = "simpletuner"
    SD_SCRIPTS = "sd-scripts"
    ONETRAINER = "onetrainer"
    DIFFUSERS = "diffusers"


TRAINERS: Mapping[str, Trainer] = {
    module.TRAINER.name: module.TRAINER
    for module in (ai_toolkit, simpletuner, sd_scripts, onetrainer, diffusers_script)
}
"""Name -> trainer, in the order of ``Target``."""
