"""BLIP-2 (Li et al., 2023, arXiv 2301.12597): a language model that reads what a Q-Former saw."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from fluxtune.captioning.family import Family, generate, without_beginning
from fluxtune.captioning.load import Loaded


def caption(loaded: Loaded, images: Sequence[Image.Image], prompt: str | None, max_tokens: int) -> list[str]:
    """Captions by beam search; a prompt is the beginning of each, or a question whose answer is the caption."""
    loaded.processor.tokenizer.padding_side = "left"
    asks = prompt is not None and "?" in prompt
    inputs = loaded.processor(images=list(images), text=[prompt or ""] * len(images), return_tensors="pt", padding=True)
    ids = generate(loaded, inputs, max_tokens, beams=3)
    texts = [
        without_beginning(text.strip(), prompt) for text in loaded.processor.batch_decode(ids, skip_special_tokens=True)
    ]
    if prompt is None or asks:
        return texts
    return [f"{prompt} {text.strip()}" for text in texts]


FAMILY = Family("BLIP-2", ("blip-2",), lambda class_word: None, 60, caption)
