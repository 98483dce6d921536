"""``[checkpoints]``: what is saved, when, and how."""

from __future__ import annotations

from typing import Literal

from fluxtune.config.base import Section, setting


class CheckpointsConfig(Section):
    """Checkpoints during the run, and the form of the result."""

    every: int = setting(250, "Steps between checkpoints; 0 saves only at the end.", unit="steps", ge=0)
    keep: int = setting(
        3, "How many checkpoints are kept; older ones go, except what the run may go back to.", ge=1, le=10_000
    )
    dtype: Literal["fp32", "bf16", "fp16"] = setting("bf16", "Precision of the LoRA files.")
