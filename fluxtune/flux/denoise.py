"""From text to picture. Previews and ``fluxtune sample`` both come through here."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL import Image

from fluxtune.flux.base import Base
from fluxtune.flux.families import Text
from fluxtune.flux.modulation import foreseen

_STEPS_AHEAD = 256
"""Denoising steps whose modulation is computed ahead: half a GiB of FLUX.1-dev's, and some nine prompts of it."""


@dataclass(frozen=True)
class Request:
    """One picture: everything that decides its pixels, beside the weights. Sizes in pixels."""

    prompt: str
    width: int
    height: int
    steps: int
    guidance: float
    seed: int


def encode_prompt(base: Base, text_pipeline: Any, prompt: str) -> dict[str, torch.Tensor]:
    """A prompt or caption encoded alone, so that its embedding never depends on its neighbours in a batch."""
    with torch.no_grad():
        return base.family.encode_text(text_pipeline, prompt, base.text_tokens)


def generate(
    base: Base,
    pipeline: Any,
    text: dict[str, torch.Tensor],
    request: Request,
    on_step: Callable[[int, int], None] | None = None,
) -> Image.Image:
    """Make one picture.

    Args:
        pipeline: from ``load.image_pipeline``.
        text: from ``encode_prompt``, for ``request.prompt``.
        on_step: called with (done, total) after each denoising step.
    """
    picture = base.family.generate(pipeline, text, on_step=on_step, **_settings(request))
    assert isinstance(picture, Image.Image)
    return picture


def generate_latents(base: Base, pipeline: Any, text: dict[str, torch.Tensor], request: Request) -> torch.Tensor:
    """The same picture as patchified latents ``[1, features, h, w]``, before the VAE decodes it."""
    latents = base.family.generate(pipeline, text, as_latents=True, **_settings(request))
    assert isinstance(latents, torch.Tensor)
    return latents


def looking_ahead(
    base: Base, pipeline: Any, requests: Sequence[Request], text_of: Callable[[str], Text]
) -> Generator[Request, None, None]:
    """The requests, one after the other, each given out when the modulation of its steps is there.

    Args:
        text_of: the encoded text of a prompt, on the device.
    """

    def generate_each(group: Sequence[Request]) -> None:
        for request in {replace(each, seed=0) for each in group}:
            generate_latents(base, pipeline, text_of(request.prompt), request)

    for group in _groups(requests):
        with foreseen(pipeline.transformer, partial(generate_each, group)):
            yield from group


def _groups(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """The requests in their order, as many together as are to be looked ahead. Seeds share their steps."""
    group: list[Request] = []
    for request in requests:
        different = {replace(each, seed=0) for each in (*group, request)}
        if group and sum(each.steps for each in different) > _STEPS_AHEAD:
            yield group
            group = []
        group.append(request)
    if group:
        yield group


def _settings(request: Request) -> dict[str, Any]:
    return {
        "width": request.width,
        "height": request.height,
        "steps": request.steps,
        "guidance": request.guidance,
        "seed": request.seed,
    }
