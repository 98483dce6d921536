"""What distinguishes one family of captioners from another, as data and functions; and what is common to all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from fluxtune.captioning.endings import ran_out, without_unfinished_sentence
from fluxtune.captioning.faults import blaming
from fluxtune.captioning.load import Loaded
from fluxtune.errors import BaseModelError, UsageError
from fluxtune.memory.shortage import fits_in_memory


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        name: as people know it.
        model_types: `model_type` in the config.json of its models.
        prompt: the class word or None -> what it is asked by default, or None for nothing.
        max_tokens: longest caption by default.
        inputs: (processor, pictures, prompt) -> what the model takes.
        beams: how many beams look for the likeliest caption; 1 is greedy.
        said: (what the model wrote, prompt) -> what it says of the picture.
        tasks: the only prompts that it knows; none where it takes any.
        goes_on: what it generates begins with the tokens that it was given, and they are no part of what it says.
    """

    name: str
    model_types: tuple[str, ...]
    prompt: Callable[[str | None], str | None]
    max_tokens: int
    inputs: Callable[[Any, Sequence[Image.Image], str | None], Any]
    beams: int = 3
    said: Callable[[str, str | None], str] = lambda text, prompt: text.strip()
    tasks: tuple[str, ...] = ()
    goes_on: bool = False


def try_out(family: Family, processor: Any, prompt: str | None) -> None:
    """Has a processor prepare a picture, so that what it lacks is found before any weights are read.

    Raises:
        UsageError: the prompt has the token in it that stands for the picture.
        BaseModelError: the processor cannot ask the model; so can any other error, where its files are damaged.
    """
    token = getattr(processor, "image_token", None)
    if prompt and token and str(token) in prompt:
        raise UsageError(
            f"the prompt has {token} in it, which stands for the picture",
            where="captioning.prompt",
            hint="leave it out: the picture is put in front of the prompt",
        )
    family.inputs(processor, [Image.new("RGB", (224, 224), "grey")], prompt)


def caption(
    family: Family, loaded: Loaded, images: Sequence[Image.Image], prompt: str | None, max_tokens: int
) -> list[str]:
    """What a model says of each picture; where its tokens ran out, up to the last sentence that is whole.

    Raises:
        BaseModelError: the model fails, or what it computes is no numbers.
        OutOfMemoryError: so many pictures at once do not fit.
    """
    with (
        blaming(
            loaded.folder,
            "the captioner fails",
            "its files are damaged or do not belong together: download it again, or choose another",
        ),
        fits_in_memory(
            "captioning", "lower captioning.batch_size, or hold the captioner in captioning.precision=int8 or nf4"
        ),
    ):
        inputs = family.inputs(loaded.processor, images, prompt)
        begin = inputs["input_ids"].shape[1] if family.goes_on else 0
        max_tokens = min(max_tokens, _most_tokens(loaded.model, inputs))
        ids = _generate(loaded, inputs, max_tokens, family.beams)
        written = loaded.processor.batch_decode(ids[:, begin:], skip_special_tokens=True)
        texts = [family.said(text, prompt) for text in written]
        cut = ran_out(loaded.model, loaded.processor.tokenizer, ids, max_tokens)
    return [
        without_unfinished_sentence(text, prompt or "") if unfinished else text
        for text, unfinished in zip(texts, cut, strict=True)
    ]


def _most_tokens(model: Any, inputs: Any) -> int:
    """How many tokens can follow what the model is given: it knows so many positions, and no more."""
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is None:
        return sys.maxsize
    given = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1] if "input_ids" in inputs else 2
    return max(1, positions - given)


def _generate(loaded: Loaded, inputs: Any, max_tokens: int, beams: int) -> torch.Tensor:
    """Token ids `[pictures, tokens]`, the likeliest by greedy or beam search: equal pictures get equal captions."""
    no_numbers = []

    def watch(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        no_numbers.append(scores.isnan().any())  # asked for at the end: a card is not waited for at each token
        return scores

    with torch.inference_mode():
        moved = inputs.to(loaded.device, dtype=loaded.dtype)
        ids: torch.Tensor = loaded.model.generate(
            **moved, max_new_tokens=max_tokens, num_beams=beams, do_sample=False, logits_processor=[watch]
        )
        if any(no_numbers):
            raise BaseModelError(
                "the captioner computes no numbers (NaN)",
                hint="its files may be damaged: download it again; or hold it in captioning.precision=fp32",
            )
    return ids


def without_beginning(text: str, beginning: str | None) -> str:
    """The text as it goes on after its beginning, where it has that: models differ in whether they repeat a prompt."""
    if beginning and text.lower().startswith(beginning.lower()):
        return text[len(beginning) :]
    return text
