"""BLIP (Li et al., 2022, arXiv 2201.12086): short captions, which a prompt may begin."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from PIL import Image

from fluxtune.captioning.family import Family

# A misspelt word of its training captions, which the large model is known to begin sentences with.
_ODD_WORD = re.compile(
    r"^(?:there is |(?P<many>there are ))?(?P<article>an? )?araf(?:ed|fe|fes|feed|fy)?\b\s*(?P<next>\w*)", re.IGNORECASE
)
_SOUNDS_LIKE_A_VOWEL = re.compile(r"(?!uni|use|eu|one\b)[aeiou]|hour|honest", re.IGNORECASE)
_OPENING = re.compile(r"^there (?:is|are) (?=an?\b|one\b|two\b|three\b|four\b|many\b|several\b|some\b)", re.IGNORECASE)


def inputs(processor: Any, images: Sequence[Image.Image], prompt: str | None) -> Any:
    """Pictures; with a prompt, each with the beginning of its caption."""
    if prompt is None:
        return processor(images=list(images), return_tensors="pt")
    return processor(images=list(images), text=[prompt] * len(images), return_tensors="pt")


def mended(text: str) -> str:
    """Without "there is" and the odd word "arafed" in front."""
    return _OPENING.sub("", _ODD_WORD.sub(_without_odd_word, text.strip()))


def _without_odd_word(match: re.Match[str]) -> str:
    """The word after it, with the article that suits that word."""
    following = match["next"]
    if not following or (match["many"] and not match["article"]):
        return following
    article = "an" if _SOUNDS_LIKE_A_VOWEL.match(following) else "a"
    return f"{article.capitalize() if (match['article'] or '')[:1].isupper() else article} {following}"


FAMILY = Family("BLIP", ("blip",), lambda class_word: None, 50, inputs, said=lambda text, prompt: mended(text))
