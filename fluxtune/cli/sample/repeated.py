"""`fluxtune sample --from`: pictures made again, with what flags and ``--set`` say otherwise."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxtune.cli.sample.asked import request_of
from fluxtune.cli.sample.settings import Given, resolved
from fluxtune.config.layers import Resolved
from fluxtune.config.model import ModelConfig
from fluxtune.errors import DataError, UsageError
from fluxtune.events import Warning
from fluxtune.lora.use import lora_use
from fluxtune.sampling.request import SampleRequest
from fluxtune.sampling.wanted import Wanted

if TYPE_CHECKING:
    from fluxtune.sampling.again import Again

_OF_A_PICTURE = {
    "previews.steps": "steps",
    "previews.guidance": "guidance",
    "previews.width": "width",
    "previews.height": "height",
    "sampling.true_guidance": "true_guidance",
    "sampling.negative_prompt": "negative_prompt",
    "sampling.strength": "strength",
}
"""Settings that change a picture that is made again, where the command line gives them."""
_SEEDS = "previews.seeds"
_OF_ITS_FILE = ("sampling.format", "sampling.quality")
_PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2")
"""Of a base model: those that single files of ``[model]`` can stand in for."""


def require_alone(others: Mapping[str, object]) -> None:
    """Refuse what says which pictures to make, where pictures say that themselves.

    Raises:
        UsageError: one of these was used.
    """
    used = [name for name, value in others.items() if value]
    if used:
        raise UsageError(
            f"--from makes pictures as they were, and {used[0]} asks for others",
            where="--from",
            hint=f"leave out {used[0]}; --seed, --steps, --guidance, --size, --set and others change single settings",
        )


def request_again(
    pictures: Sequence[Path], given: Given, loras: Sequence[str], start: Path | None, output: Path
) -> tuple[SampleRequest, tuple[Warning, ...]]:
    """The request that makes pictures again, and what may make them come out differently.

    Files of settings only say where things lie, what the files of the pictures are, and how much memory there is.

    Args:
        loras, start: files to look among for those that the pictures were made with.

    Raises:
        DataError: a picture does not say enough, or a file is not found.
        UsageError: they cannot be made together, or something is asked for that changes nothing of them.
        ConfigError: with every mistake of every layer of settings.
    """
    from fluxtune.sampling.again import read_again

    found = read_again(pictures, _plain(loras), start)
    told: dict[str, tuple[str, object]] = {key: ("--from", value) for key, value in found.settings.items()}
    settings = resolved(replace(given, flags={**told, **given.flags}), [])
    named = given.named
    _refuse_without_effect(named, found)
    if "model.base" not in found.settings and settings.origins["model.base"] == "default":
        raise DataError(
            f"the base model of this picture is {found.base}, a folder that it does not say the place of",
            where=str(pictures[0]),
            hint=f"say where it is: --base {found.base}",
        )
    request = request_of(
        settings,
        prompts=(),
        count=None,
        again=_changed(found.pictures, settings, named),
        fingerprint=None if _asks_for_another_base(named, found) else found.fingerprint,
        output=output,
    )
    return replace(request, model=_model(settings.config.model, named, found)), found.remarks


def _plain(loras: Sequence[str]) -> list[Path]:
    uses = [lora_use(text) for text in loras]
    for use in uses:
        if use.scale != 1 or use.groups:
            raise UsageError(
                "--from says how strongly each LoRA acts, and --lora only where its file is",
                where="--lora",
                hint=f"--lora {use.path}; with another scale, paint it from its prompt",
            )
    return [use.path for use in uses]


def _asks_for_another_base(named: Collection[str], found: Again) -> bool:
    """What a picture names but does not hold is only shown the place of; all else is a change."""
    parts = [part for part in _PARTS if part not in found.base_files]
    return _is_elsewhere(named, found) or any(f"model.{part}" in named for part in parts)


def _is_elsewhere(named: Collection[str], found: Again) -> bool:
    return "model.base" in found.settings and "model.base" in named


def _model(model: ModelConfig, named: Collection[str], found: Again) -> ModelConfig:
    """Without what only files of settings say of the model, and without the commit where another one is asked for."""
    told = {f"model.{part}" for part in found.base_files}
    told |= set() if _is_elsewhere(named, found) else set(found.settings)
    keys = [f"model.{name}" for name in (*_PARTS, "revision")]
    foreign = [key.removeprefix("model.") for key in keys if key not in told and key not in named]
    return model.model_copy(update=dict.fromkeys(foreign))


def _refuse_without_effect(named: Mapping[str, str], found: Again) -> None:
    effective = {*_OF_A_PICTURE, _SEEDS, *_OF_ITS_FILE, *found.settings}
    for key, flag in named.items():
        if key not in effective and not key.startswith(("model.", "memory.")):
            raise UsageError(f"{key} changes nothing of a picture that is made again", where=flag, hint="leave it out")


def _changed(pictures: Sequence[Wanted], settings: Resolved, named: Collection[str]) -> tuple[Wanted, ...]:
    changes = dict(_changes(settings, named))
    return tuple(replace(wanted, **changes) for wanted in pictures)


def _changes(settings: Resolved, named: Collection[str]) -> Iterator[tuple[str, Any]]:
    values = {**vars(settings.config.sampling), **vars(settings.config.previews)}
    for key, name in _OF_A_PICTURE.items():
        if key in named:
            yield name, values[name]
    if _SEEDS in named:
        yield "seed", settings.config.previews.seeds[0]
