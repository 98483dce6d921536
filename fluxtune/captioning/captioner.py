"""The protocol that every captioner answers, and the way from a name to one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from fluxtune.captioning import blip, blip2, florence2, instructed
from fluxtune.captioning.family import Family, caption, try_out
from fluxtune.captioning.load import load_model, model_type_of
from fluxtune.config.schema import Config
from fluxtune.errors import UsageError
from fluxtune.events import Phase, Sink
from fluxtune.hub.layouts import CAPTIONER, CAPTIONERS
from fluxtune.hub.locate import locate

FAMILIES = (blip.FAMILY, blip2.FAMILY, florence2.FAMILY)
"""Those that are not asked in a chat."""


class Captioner(Protocol):
    """Says what pictures show."""

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        """One text for each picture (upright, RGB, of any size), in their order, as the model words it.

        Raises:
            BaseModelError: the model fails: its files are damaged, or do not belong together.
            OutOfMemoryError: so many at once do not fit in memory.
        """


def find_captioner(config: Config, on_event: Sink) -> Path:
    """The folder of the captioner that the configuration names, downloaded if need be; nothing is loaded.

    Raises:
        BaseModelError: missing, incomplete, gated, or no model that captions pictures.
        UsageError: it cannot be asked what the settings want.
    """
    chosen = config.captioning

    def check(folder: Path) -> None:
        prompt_for(family_of(model_type_of(folder)), config)

    folder = locate(
        CAPTIONERS.get(chosen.captioner, chosen.captioner),
        chosen.revision,
        config.model.offline,
        on_event,
        check_index=lambda index: check(index.parent),
        kind=CAPTIONER,
    )
    check(folder)
    return folder


def open_captioner(folder: Path, config: Config, device: str, on_event: Sink) -> Captioner:
    """Loads the captioner of a folder.

    Args:
        device: ``cpu`` or ``cuda``.

    Raises:
        BaseModelError: files are damaged, or do not belong together.
        UsageError: it cannot be asked what the settings want; told before the weights are read.
        OutOfMemoryError: it does not fit.
    """
    chosen = config.captioning
    family = family_of(model_type_of(folder))
    prompt = prompt_for(family, config)
    tokens = chosen.max_tokens or family.max_tokens
    on_event(Phase("load", f"{chosen.captioner} ({family.name}) in {chosen.precision} precision on {device}"))
    loaded = load_model(folder, chosen.precision, device, lambda processor: try_out(family, processor, prompt))
    return lambda images: caption(family, loaded, images, prompt, tokens)


def family_of(model_type: str) -> Family:
    """The family of a transformers model type; what is no family of its own takes instructions in a chat."""
    return next((family for family in FAMILIES if model_type in family.model_types), instructed.FAMILY)


def prompt_for(family: Family, config: Config) -> str | None:
    """What the captioner is asked: the user's prompt, else the family's own, with the class word in its place.

    Raises:
        UsageError: the user's prompt is none of the tasks that the family knows.
    """
    class_word = config.dataset.class_word
    if config.captioning.prompt is None:
        return family.prompt(class_word)
    prompt = config.captioning.prompt.replace("{class_word}", class_word or "")
    if family.tasks and prompt not in family.tasks:
        raise UsageError(
            f"{family.name} knows tasks, not prompts: {prompt!r} is none that captions",
            where="captioning.prompt",
            hint=f"use {', '.join(family.tasks)}",
        )
    return prompt
