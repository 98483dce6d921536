"""Florence-2 (Xiao et al., 2023, arXiv 2311.06242): a prompt is one of its tasks."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from fluxtune.captioning.family import Family, generate
from fluxtune.captioning.load import Loaded
from fluxtune.errors import UsageError

TASKS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")


def caption(loaded: Loaded, images: Sequence[Image.Image], prompt: str | None, max_tokens: int) -> list[str]:
    """Captions by beam search.

    Raises:
        UsageError: the prompt is none of the tasks that caption.
    """
    if prompt not in TASKS:
        raise UsageError(
            f"Florence-2 knows tasks, not prompts: {prompt!r} is none that captions",
            where="captioning.prompt",
            hint=f"use {', '.join(TASKS)}",
        )
    inputs = loaded.processor(images=list(images), text=[prompt] * len(images), return_tensors="pt", padding=True)
    ids = generate(loaded, inputs, max_tokens, beams=3)
    return [text.strip() for text in loaded.processor.batch_decode(ids, skip_special_tokens=True)]


FAMILY = Family("Florence-2", ("florence2",), lambda class_word: "<MORE_DETAILED_CAPTION>", 256, caption)
