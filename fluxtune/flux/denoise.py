"""From text to picture. Previews and ``fluxtune sample`` both come through here."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fluxtune.dataset.images import fit, open_image
from fluxtune.flux.base import Base
from fluxtune.flux.families import Text
from fluxtune.flux.modulation import foreseen

_STEPS_AHEAD = 256
"""Denoising steps whose modulation is computed ahead: half a GiB of FLUX.1-dev's, and some nine prompts of it."""
_BEHIND = "#ffffff"
"""What transparent parts of a start picture lie on."""


@dataclass(frozen=True)
class Start:
    """A picture to begin with instead of noise, and how much of the way from noise is gone again: 1 leaves nothing."""

    path: Path
    strength: float


@dataclass(frozen=True)
class Request:
    """One picture: everything that decides its pixels, beside the weights. Sizes in pixels.

    Attributes:
        negative_prompt: what is not wanted; where it is given, each step is computed with it too, and its result is
            left behind by ``true_guidance``.
        start: is scaled to cover the picture, and cut.
    """

    prompt: str
    width: int
    height: int
    steps: int
    guidance: float
    seed: int
    negative_prompt: str | None = None
    true_guidance: float = 1.0
    start: Start | None = None

    @property
    def steps_taken(self) -> int:
        """Denoising steps that are computed: from a start picture only the last ones, as diffusers counts them."""
        return self.steps if self.start is None else self.steps - int(self.steps - self.steps * self.start.strength)


def encode_prompt(base: Base, text_pipeline: Any, prompt: str) -> dict[str, torch.Tensor]:
    """A prompt or caption encoded alone, so that its embedding never depends on its neighbours in a batch."""
    with torch.no_grad():
        return base.family.encode_text(text_pipeline, prompt, base.text_tokens)


def generate(
    base: Base,
    pipeline: Any,
    text: dict[str, torch.Tensor],
    request: Request,
    on_step: Callable[[], None] | None = None,
) -> Image.Image:
    """Make one picture, of a request without a negative prompt.

    Args:
        pipeline: from ``load.image_pipeline``.
        text: from ``encode_prompt``, for ``request.prompt``.
        on_step: called after each denoising step.
    """
    (picture,) = generate_together(base, pipeline, lambda _: text, [request], on_step)
    return picture


def generate_together(
    base: Base,
    pipeline: Any,
    text_of: Callable[[str], Text],
    requests: Sequence[Request],
    on_step: Callable[[], None] | None = None,
) -> list[Image.Image]:
    """Make pictures in one batch. They differ in their prompts and seeds alone.

    Args:
        text_of: the encoded text of a prompt, on the device.
    """
    pictures = base.family.generate(pipeline, on_step=on_step, **_settings(requests, text_of))
    assert isinstance(pictures, list)
    return pictures


def generate_latents(base: Base, pipeline: Any, text: dict[str, torch.Tensor], request: Request) -> torch.Tensor:
    """The same picture as patchified latents ``[1, features, h, w]``, before the VAE decodes it."""
    latents = base.family.generate(pipeline, as_latents=True, **_settings([request], lambda _: text))
    assert isinstance(latents, torch.Tensor)
    return latents


def looking_ahead(
    base: Base, pipeline: Any, requests: Sequence[Request], text_of: Callable[[str], Text]
) -> Generator[Request, None, None]:
    """The requests, one after the other, each given out when the modulation of its steps is there.

    Args:
        text_of: the encoded text of a prompt, on the device.
    """
    with closing(batches_looking_ahead(base, pipeline, [(request,) for request in requests], text_of)) as batches:
        for (request,) in batches:
            yield request


def batches_looking_ahead(
    base: Base, pipeline: Any, batches: Sequence[tuple[Request, ...]], text_of: Callable[[str], Text]
) -> Generator[tuple[Request, ...], None, None]:
    """As ``looking_ahead``, for requests that are made in batches."""

    def generate_each(group: Sequence[tuple[Request, ...]]) -> None:
        for batch in set(map(_seedless, group)):
            base.family.generate(pipeline, as_latents=True, **_settings(batch, text_of))

    for group in _groups(batches):
        with foreseen(pipeline.transformer, partial(generate_each, group)):
            yield from group


def _groups(batches: Sequence[tuple[Request, ...]]) -> Iterator[list[tuple[Request, ...]]]:
    """The batches in their order, as many together as are to be looked ahead. Seeds share their steps."""
    group: list[tuple[Request, ...]] = []
    for batch in batches:
        different = set(map(_seedless, (*group, batch)))
        if group and sum(each.steps for together in different for each in together) > _STEPS_AHEAD:
            yield group
            group = []
        group.append(batch)
    if group:
        yield group


def _seedless(batch: tuple[Request, ...]) -> tuple[Request, ...]:
    return tuple(replace(request, seed=0) for request in batch)


def _settings(requests: Sequence[Request], text_of: Callable[[str], Text]) -> dict[str, Any]:
    """What a family's ``generate`` takes, beside the pipeline."""
    first = requests[0]
    start = None
    if first.start is not None:
        start = fit(open_image(first.start.path, _BEHIND), first.width, first.height)
    negative = first.negative_prompt
    return {
        "text": _together([text_of(request.prompt) for request in requests]),
        "negative": None if negative is None else _together([text_of(negative)] * len(requests)),
        "true_guidance": first.true_guidance,
        "start": start,
        "strength": 1.0 if first.start is None else first.start.strength,
        "width": first.width,
        "height": first.height,
        "steps": first.steps,
        "guidance": first.guidance,
        "seeds": [request.seed for request in requests],
    }


def _together(texts: Sequence[Text]) -> Text:
    return {name: torch.cat([text[name] for text in texts]) for name in texts[0]}
