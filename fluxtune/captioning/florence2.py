"""Florence-2 (Xiao et al., 2023, arXiv 2311.06242): a prompt is one of its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from fluxtune.captioning.family import Family


def inputs(processor: Any, images: Sequence[Image.Image], prompt: str | None) -> Any:
    """Pictures, each with the task."""
    return processor(images=list(images), text=[prompt] * len(images), return_tensors="pt", padding=True)


FAMILY = Family(
    "Florence-2",
    ("florence2",),
    lambda class_word: "<MORE_DETAILED_CAPTION>",
    256,
    inputs,
    tasks=("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>"),
)
