"""What distinguishes one family of captioners from another, as data and functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from fluxtune.captioning.load import Loaded
from fluxtune.memory.shortage import fits_in_memory


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        name: as people know it.
        model_types: `model_type` in the config.json of its models.
        prompt: the class word or None -> what it is asked by default, or None for nothing.
        max_tokens: longest caption by default.
        caption: (model, pictures, prompt, most tokens) -> a text for each picture.
    """

    name: str
    model_types: tuple[str, ...]
    prompt: Callable[[str | None], str | None]
    max_tokens: int
    caption: Callable[[Loaded, Sequence[Image.Image], str | None, int], list[str]]


def generate(loaded: Loaded, inputs: Any, max_tokens: int, beams: int = 1) -> torch.Tensor:
    """Token ids `[pictures, tokens]`, the likeliest by greedy or beam search: equal pictures get equal captions.

    Raises:
        OutOfMemoryError: so many pictures at once do not fit.
    """
    with (
        torch.inference_mode(),
        fits_in_memory(
            "captioning", "lower captioning.batch_size, or hold the captioner in captioning.precision=int8 or nf4"
        ),
    ):
        moved = inputs.to(loaded.device, dtype=loaded.dtype)
        return loaded.model.generate(**moved, max_new_tokens=max_tokens, num_beams=beams, do_sample=False)


def without_beginning(text: str, beginning: str | None) -> str:
    """The text as it goes on after its beginning, where it has that: models differ in whether they repeat a prompt."""
    if beginning and text.lower().startswith(beginning.lower()):
        return text[len(beginning) :]
    return text
