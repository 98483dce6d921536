"""``[previews]``: pictures made while training, always at the same prompts and seeds."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fluxtune.config.base import Section, setting

Side = Annotated[int, Field(ge=64, le=4096, multiple_of=16)]
LAST_SEED = 2**63 - 1
Seed = Annotated[int, Field(ge=0, lt=LAST_SEED + 1)]


class PreviewsConfig(Section):
    """Previews, including one before the first step."""

    every: int = setting(250, "Steps between previews; 0 makes none.", unit="steps", ge=0)
    prompts: list[str] = setting([], "Prompts of the previews. Without any, the first caption of the data set.")
    seeds: list[Seed] = setting([42], "Seeds; each prompt is made with each of them.", min_length=1)
    steps: int | None = setting(
        None,
        "Denoising steps of a preview; unset means what the base model wants: 28 for dev, 4 for schnell.",
        ge=1,
        le=1000,
    )
    guidance: float = setting(3.5, "Guidance of a preview, for models that embed it.", ge=0.0, le=100.0)
    width: Side | None = setting(None, "Width; unset means the first training resolution.", unit="px")
    height: Side | None = setting(None, "Height; unset means the first training resolution.", unit="px")
