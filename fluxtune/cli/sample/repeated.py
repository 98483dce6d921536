"""`fluxtune sample --from`: pictures made again, with what flags say otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fluxtune.cli.sample.asked import request_of
from fluxtune.cli.sample.settings import Given, resolved
from fluxtune.config.layers import Resolved
from fluxtune.errors import DataError, UsageError
from fluxtune.events import Warning
from fluxtune.lora.use import lora_use
from fluxtune.sampling.request import SampleRequest, Wanted

_OF_A_PICTURE = {
    "previews.steps": "steps",
    "previews.guidance": "guidance",
    "previews.width": "width",
    "previews.height": "height",
    "sampling.true_guidance": "true_guidance",
    "sampling.negative_prompt": "negative_prompt",
    "sampling.strength": "strength",
}
"""Settings whose flags change a picture that is made again."""


def require_alone(others: Mapping[str, object], compare: bool) -> None:
    """Refuse what says which pictures to make, where pictures say that themselves.

    Raises:
        UsageError: one of these was used.
    """
    used = [name for name, value in {**others, "--compare": compare}.items() if value]
    if used:
        raise UsageError(
            f"--from makes pictures as they were, and {used[0]} asks for others",
            where="--from",
            hint=f"leave out {used[0]}; --seed, --steps, --guidance, --size and others change what is made again",
        )


def request_again(
    pictures: Sequence[Path], given: Given, loras: Sequence[str], start: Path | None, output: Path
) -> tuple[SampleRequest, tuple[Warning, ...]]:
    """The request that makes pictures again, and what may make them come out differently.

    Args:
        loras, start: files to look among for those that the pictures were made with.

    Raises:
        DataError: a picture does not say enough, or a file is not found.
        UsageError: they cannot be made together.
        ConfigError: with every mistake of every layer of settings.
    """
    from fluxtune.sampling.again import read_again

    found = read_again(pictures, [lora_use(text).path for text in loras], start)
    told: dict[str, tuple[str, object]] = {key: ("--from", value) for key, value in found.settings.items()}
    settings = resolved(replace(given, flags={**told, **given.flags}), [])
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
        again=_changed(found.pictures, settings, given),
        # Another base model that is asked for is a change, too.
        fingerprint=None if "model.base" in found.settings and "model.base" in given.flags else found.fingerprint,
        output=output,
    )
    return request, found.remarks


def _changed(pictures: Sequence[Wanted], settings: Resolved, given: Given) -> tuple[Wanted, ...]:
    values = {**vars(settings.config.sampling), **vars(settings.config.previews)}
    changes = {name: values[name] for key, name in _OF_A_PICTURE.items() if key in given.flags}
    if "previews.seeds" in given.flags:
        changes["seed"] = settings.config.previews.seeds[0]
    return tuple(replace(wanted, **changes) for wanted in pictures)
