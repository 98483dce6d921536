"""Options that several commands share, and flags whose help comes from the schema."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, TypeAlias

import typer

from fluxtune.config.documents import parse_value
from fluxtune.config.presets import listing
from fluxtune.config.settings import field_of, settings, shown
from fluxtune.errors import Refusal, UsageError


def setting_flag(key: str, *names: str, metavar: str, **more: Any) -> Any:
    """An option that sets one setting. Help and default are the schema's, and so is the check: it takes any text.

    Args:
        more: what else `typer.Option` takes.
    """
    field = field_of(key)
    default = field.get_default(call_default_factory=True)
    usual = f" Default: {shown(default)}." if default not in (None, "") else ""
    return typer.Option(*names, help=f"{field.description}{usual}", metavar=metavar, **more)


def given(flags: dict[str, tuple[str, str | list[str] | None]]) -> dict[str, tuple[str, object]]:
    """The flags that were used: dotted key -> (flag, value), read as what the setting wants; a text stays a text.

    A flag with an empty text was used, and the schema says whether its setting may be empty.
    """
    used = {key: (flag, value) for key, (flag, value) in flags.items() if value is not None and value != []}
    return {key: (flag, _read(key, value)) for key, (flag, value) in used.items()}


def require_data_alone(accept: Collection[Refusal]) -> None:
    """Of an export only pictures and captions can be accepted in spite of their errors.

    Raises:
        UsageError: something else is to be accepted.
    """
    if other := set(accept) - {Refusal.DATA}:
        raise UsageError(
            f"an export is refused for its pictures and captions alone, not for {', '.join(other)}",
            where="--accept",
            hint="--accept data",
        )


def _read(key: str, value: str | list[str]) -> object:
    if isinstance(value, list):
        return [_read(key, item) for item in value]
    return value if "string" in settings()[key].kinds else parse_value(value)


def complete_preset(incomplete: str) -> list[tuple[str, str]]:
    """Preset names that begin so, with what each is for: short enough for one line, which is all that a shell takes."""
    return [
        (preset.name, shorten(preset.description, 60, placeholder=" …"))
        for preset in listing()
        if preset.name.startswith(incomplete)
    ]


Preset: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--preset",
        "-p",
        metavar="NAME|FILE",
        help="Settings for a card or a purpose; `fluxtune presets` lists them.",
        autocompletion=complete_preset,
    ),
]
ConfigFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Your settings as TOML; without it, fluxtune.toml of this folder if there is one.",
    ),
]
Sets: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set any setting, for instance --set lora.alpha=8; repeatable. --explain lists them all.",
    ),
]
Json: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Write JSON lines on stdout, for programs; the last is the result or the error.")
]
Base: TypeAlias = Annotated[str | None, setting_flag("model.base", "--base", "-b", metavar="ID|FOLDER|nano")]
Name: TypeAlias = Annotated[str | None, setting_flag("name", "--name", "-n", metavar="NAME")]
Trigger: TypeAlias = Annotated[str | None, setting_flag("dataset.trigger", "--trigger", "-t", metavar="WORD")]
ClassWord: TypeAlias = Annotated[str | None, setting_flag("dataset.class_word", "--class-word", metavar="WORD")]
Resolution: TypeAlias = Annotated[
    list[str] | None, setting_flag("dataset.resolution", "--resolution", metavar="PIXELS")
]
Steps: TypeAlias = Annotated[str | None, setting_flag("training.steps", "--steps", "-s", metavar="N")]
Rank: TypeAlias = Annotated[str | None, setting_flag("lora.rank", "--rank", "-r", metavar="N")]
LearningRate: TypeAlias = Annotated[
    str | None, setting_flag("training.learning_rate", "--learning-rate", "--lr", metavar="X")
]
BatchSize: TypeAlias = Annotated[str | None, setting_flag("training.batch_size", "--batch-size", metavar="N")]
Seed: TypeAlias = Annotated[str | None, setting_flag("training.seed", "--seed", metavar="N")]
