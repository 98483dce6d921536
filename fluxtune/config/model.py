"""``[model]``: which FLUX is taught."""

from __future__ import annotations

from fluxtune.config.base import Section, setting


class ModelConfig(Section):
    """The base model."""

    base: str = setting(
        "black-forest-labs/FLUX.1-dev",
        "Base model: a hub id, a local diffusers folder, or nano for the small model that ships with fluxtune.",
        path="path or id",
        min_length=1,
    )
    revision: str | None = setting(None, "Branch, tag or commit of a hub model; pin it to make a run repeatable.")
    offline: bool = setting(False, "Never use the network: take the base from the local hub cache or fail.")
