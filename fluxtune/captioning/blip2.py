"""BLIP-2 (Li et al., 2023, arXiv 2301.12597): a language model that reads what a Q-Former saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from fluxtune.captioning.family import Family, without_beginning


def inputs(processor: Any, images: Sequence[Image.Image], prompt: str | None) -> Any:
    """Pictures, each with the prompt, if any."""
    processor.tokenizer.padding_side = "left"
    return processor(images=list(images), text=[prompt or ""] * len(images), return_tensors="pt", padding=True)


def said(text: str, prompt: str | None) -> str:
    """The caption: a prompt is the beginning of it, or a question whose answer is the caption."""
    text = without_beginning(text.strip(), prompt).strip()
    return text if prompt is None or "?" in prompt else f"{prompt} {text}"


FAMILY = Family("BLIP-2", ("blip-2",), lambda class_word: None, 60, inputs, said=said)
