"""The ways in which several LoRAs become one."""

from __future__ import annotations

from enum import StrEnum


class Method(StrEnum):
    """How LoRAs become one."""

    EXACT = "exact"
    SVD = "svd"
    TIES = "ties"
    DARE = "dare"
    DARE_TIES = "dare-ties"
