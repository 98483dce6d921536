"""The ways in which several LoRAs become one, and in which a whole model is written."""

from __future__ import annotations

from enum import StrEnum


class Method(StrEnum):
    """How LoRAs become one."""

    EXACT = "exact"
    SVD = "svd"
    TIES = "ties"
    DARE = "dare"
    DARE_TIES = "dare-ties"


class Checkpoint(StrEnum):
    """The layouts that a whole model is written in."""

    DIFFUSERS = "diffusers"
    COMFYUI = "comfyui"
