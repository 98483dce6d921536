"""The trainers that are known, by their names."""

from __future__ import annotations

from collections.abc import Mapping

from fluxtune.handover import ai_toolkit, diffusers_script, onetrainer, sd_scripts, simpletuner
from fluxtune.handover.rules import Trainer

TRAINERS: Mapping[str, Trainer] = {
    module.TRAINER.name: module.TRAINER
    for module in (ai_toolkit, simpletuner, sd_scripts, onetrainer, diffusers_script)
}
"""Name -> trainer, in the order of ``Target``."""
