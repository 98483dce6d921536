"""From the words of the command line to a request of the sampler."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fluxtune.config.layers import Resolved
from fluxtune.errors import UsageError
from fluxtune.lora.use import LoraUse, lora_use
from fluxtune.runs import Run
from fluxtune.sampling.prompts import PromptRow, sides
from fluxtune.sampling.request import SampleRequest, seeds_from
from fluxtune.sampling.wildcards import literal


def lora_uses(texts: Sequence[str], axes: Sequence[str]) -> list[LoraUse]:
    """The LoRAs of the command line; a run that has no result yet has its last checkpoint in a grid of them."""
    by_checkpoint = any(axis.partition("=")[0].strip() == "checkpoint" for axis in axes)
    return [lora_use(_with_checkpoint(text) if by_checkpoint else text) for text in texts]


def _with_checkpoint(text: str) -> str:
    """A run that has no result yet as its last checkpoint."""
    for folder in (text, text.rpartition(":")[0]):
        if folder and (Path(folder) / "run.json").is_file():
            run = Run.open(Path(folder))
            if run.state.result is None and (kept := run.checkpoints()):
                return f"{kept[-1]}{text[len(folder) :]}"
    return text


def both_sides(size: str | None, width: str | None, height: str | None) -> tuple[str | None, str | None]:
    """(width, height) as they were given, in either way.

    Raises:
        UsageError: in both ways, or as no size.
    """
    if size is None:
        return width, height
    if width is not None or height is not None:
        raise UsageError(
            "--size gives both sides already", where="--size", hint="leave out --width and --height, or --size"
        )
    found = sides(size)
    if found is None:
        raise UsageError(f"{size!r} is no size: wanted WIDTHxHEIGHT", where="--size", hint="for instance 1024x768")
    return str(found[0]), str(found[1])


def request_of(resolved: Resolved, prompts: Sequence[PromptRow], count: int | None, **more: Any) -> SampleRequest:
    """What the settings come to; prompts of the settings stand in where none are given, as training previews take them.

    Args:
        more: what else a request takes.

    Raises:
        UsageError: there are not so many seeds.
    """
    config = resolved.config
    previews, side = config.previews, config.dataset.resolution[0]
    as_previews = [PromptRow.model_construct(prompt=literal(text)) for text in previews.prompts]
    return SampleRequest(
        model=config.model,
        prompts=tuple(prompts or as_previews),
        seeds=tuple(previews.seeds if count is None else seeds_from(previews.seeds[0], count, "--count")),
        steps=previews.steps,
        guidance=previews.guidance,
        width=previews.width or side,
        height=previews.height or side,
        sampling=config.sampling,
        memory=config.memory,
        precision=config.training.precision,
        device=config.training.device,
        **more,
    )
