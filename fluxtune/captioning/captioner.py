"""The protocol that every captioner answers, and the way from a name to one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from fluxtune.captioning import blip, blip2, florence2, instructed
from fluxtune.captioning.family import Family
from fluxtune.captioning.load import Loaded, load_model, model_type_of
from fluxtune.config.schema import Config
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
            OutOfMemoryError: so many at once do not fit in memory.
        """


def find_captioner(config: Config, on_event: Sink) -> Path:
    """The folder of the captioner that the configuration names, downloaded if need be; nothing is loaded.

    Raises:
        BaseModelError: missing, incomplete, gated, or no model that captions pictures.
    """
    chosen = config.captioning
    folder = locate(
        CAPTIONERS.get(chosen.captioner, chosen.captioner),
        chosen.revision,
        config.model.offline,
        on_event,
        check_index=lambda index: model_type_of(index.parent),
        kind=CAPTIONER,
    )
    model_type_of(folder)
    return folder


def open_captioner(folder: Path, config: Config, device: str, on_event: Sink) -> Captioner:
    """Loads the captioner of a folder.

    Args:
        device: ``cpu`` or ``cuda``.
    """
    chosen = config.captioning
    family = family_of(model_type_of(folder))
    on_event(Phase("load", f"{chosen.captioner} ({family.name}) in {chosen.precision} precision on {device}"))
    loaded = load_model(folder, chosen.precision, device)
    prompt = prompt_for(family, config)
    tokens = chosen.max_tokens or family.max_tokens
    return _bound(family, loaded, prompt, tokens)


def family_of(model_type: str) -> Family:
    """The family of a transformers model type; what is no family of its own takes instructions in a chat."""
    return next((family for family in FAMILIES if model_type in family.model_types), instructed.FAMILY)


def prompt_for(family: Family, config: Config) -> str | None:
    """What the captioner is asked: the user's prompt, else the family's own, with the class word in its place."""
    class_word = config.dataset.class_word
    if config.captioning.prompt is not None:
        return config.captioning.prompt.replace("{class_word}", class_word or "")
    return family.prompt(class_word)


def _bound(family: Family, loaded: Loaded, prompt: str | None, max_tokens: int) -> Captioner:
    def caption(images: Sequence[Image.Image]) -> list[str]:
        return family.caption(loaded, images, prompt, max_tokens)

    return caption
