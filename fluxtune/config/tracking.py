"""``[tracking]``: where the figures and previews of a run go beside its folder."""

from __future__ import annotations

from typing import Literal

from fluxtune.config.base import Section, setting


class TrackingConfig(Section):
    """Trackers, which show runs beside each other; their files lie in the run folder, under `tracking`."""

    trackers: list[Literal["tensorboard", "wandb"]] = setting(
        [], "TensorBoard and Weights & Biases; the latter obeys WANDB_MODE, and offline it needs no network."
    )
    project: str = setting("fluxtune", "Project of Weights & Biases that runs belong to.", min_length=1)
