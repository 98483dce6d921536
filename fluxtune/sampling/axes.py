"""Axes of grids: what is varied from picture to picture, and its values.

``seed=1,2,3``, ``steps=8,28``, ``lora-scale=0,0.5,1``, ``checkpoint=all`` or ``checkpoint=500,1000``,
``prompt=a cup|a boat``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fluxtune.config.documents import parse_value
from fluxtune.config.problems import nearest
from fluxtune.errors import UsageError
from fluxtune.runs import Run, lora_in, step_of
from fluxtune.sampling.prompts import row_value, sides
from fluxtune.sampling.wanted import Wanted
from fluxtune.sampling.wildcards import alternatives

_WHERE = "--grid"
_NUMBERS = {
    "seed": ("seed {}", "seed{}"),
    "steps": ("{} steps", "steps{}"),
    "guidance": ("guidance {:g}", "guidance{:g}"),
    "true-guidance": ("true guidance {:g}", "true{:g}"),
    "strength": ("strength {:g}", "strength{:g}"),
}
"""Axes of single numbers: how a label says a value, and how a file's name does."""
_TEXTS = ("prompt", "negative-prompt")
NAMES = (*_TEXTS, *_NUMBERS, "size", "lora-scale", "checkpoint")


@dataclass(frozen=True)
class Value:
    """One value of an axis.

    Attributes:
        label: what stands in a grid for it.
        mark: what tells its pictures apart in their files' names; empty where that needs no word.
        change: makes a picture that is wanted one of this value.
    """

    label: str
    mark: str
    change: Callable[[Wanted], Wanted]


@dataclass(frozen=True)
class Axis:
    """What is varied, by one of ``NAMES``, and its values."""

    name: str
    values: tuple[Value, ...]


def read_axis(text: str, runs: tuple[Path | None, ...]) -> Axis:
    """Read ``NAME=VALUE,VALUE...``; prompts, which may hold commas, are parted by ``|`` instead.

    Args:
        runs: for each LoRA of the request the folder of the run that it comes from, if it comes from one.

    Raises:
        UsageError: there is no such axis, or a value is none of it.
        StorageError: the run of ``checkpoint`` cannot be read.
    """
    name, equals, listed = text.partition("=")
    name = name.strip().replace("_", "-")
    if not equals or name not in NAMES:
        close = nearest(name, list(NAMES))
        raise UsageError(
            f"{text!r} is no axis: wanted NAME=VALUE,VALUE...",
            where=_WHERE,
            hint=f"did you mean {close}=...?" if equals and close and close != name else f"names: {', '.join(NAMES)}",
        )
    if name in _TEXTS:
        # An empty one is told as a prompt that is none; as a negative prompt it has a meaning.
        given = [part.strip() for part in alternatives(listed)]
    else:
        given = [part.strip() for part in listed.split(",") if part.strip()]
    if not any(given):
        raise UsageError(f"{name} has no values", where=_WHERE, hint=f"for instance --grid {_example(name)}")
    if name == "checkpoint":
        values = _checkpoints(given, runs)
    elif name == "lora-scale":
        if not runs:
            raise UsageError("lora-scale varies a LoRA, and there is none", where=_WHERE, hint="add --lora FILE")
        values = [_scale(each) for each in given]
    else:
        values = [_of_row(name, each, number) for number, each in enumerate(given)]
    if len({value.label for value in values}) < len(values):
        raise UsageError(f"{name} has a value twice: {listed}", where=_WHERE, hint="give each once")
    return Axis(name, tuple(values))


COMPARISON = Axis(
    "lora",
    (
        Value("without LoRA", "without", lambda wanted: replace(wanted, loras=())),
        Value("with LoRA", "", lambda wanted: wanted),
    ),
)
"""With and without the LoRAs of a request."""


def _example(name: str) -> str:
    examples = {"prompt": '"prompt=a cup|a boat"', "size": "size=1024x1024,1024x768", "checkpoint": "checkpoint=all"}
    return examples.get(name, f"{name}=1,2")


def _of_row(name: str, text: str, number: int) -> Value:
    """A value of what a row of prompts may have of its own, the so-and-so-many-th of its axis."""
    key = name.replace("-", "_")
    fields = row_value(key, text if name in _TEXTS or name == "size" else parse_value(text), _WHERE)

    def change(wanted: Wanted) -> Wanted:
        return replace(wanted, **fields)

    if name in _TEXTS:
        return Value(text or "empty text", "" if name == "prompt" else f"negative{number}", change)
    if name == "size":
        both = sides(text)
        assert both is not None
        return Value(f"{both[0]} x {both[1]}", f"{both[0]}x{both[1]}", change)
    label, mark = (form.format(fields[key]) for form in _NUMBERS[name])
    return Value(label, "" if name == "seed" else mark, change)


def _scale(text: str) -> Value:
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not math.isfinite(factor):
        raise UsageError(
            f"{text!r} is no scale: wanted a finite number", where=_WHERE, hint="for instance --grid lora-scale=0,0.5,1"
        )
    return Value(f"LoRA at {factor:g}", f"scale{factor:g}", lambda wanted: wanted.scaled(factor))


def _checkpoints(given: list[str], runs: tuple[Path | None, ...]) -> list[Value]:
    """The LoRA of a run as it was at different steps."""
    place = next((number for number, run in enumerate(runs) if run is not None), None)
    if place is None:
        raise UsageError(
            "checkpoint varies the LoRA of a run, and there is none", where=_WHERE, hint="add --lora RUN, its folder"
        )
    run = Run.open(runs[place])  # type: ignore[arg-type]
    folders = {step_of(folder): folder for folder in run.checkpoints()}
    if not folders:
        raise UsageError("this run has no checkpoints", where=str(run.folder), hint="take its result, without --grid")
    values = []
    for word in given:
        if word == "all":
            chosen = list(folders)
        elif word == "result":
            values.append(_taken(place, run.folder, "result", "result"))
            continue
        elif word.isdecimal() and int(word) in folders:
            chosen = [int(word)]
        else:
            raise UsageError(
                f"{word!r} is no checkpoint of this run",
                where=_WHERE,
                hint=f"there are all, result and {', '.join(map(str, folders))}",
            )
        values += [_taken(place, folders[step], f"step {step}", f"step{step}") for step in chosen]
    return values


def _taken(place: int, folder: Path, label: str, mark: str) -> Value:
    path = lora_in(folder)

    def change(wanted: Wanted) -> Wanted:
        uses = list(wanted.loras)
        uses[place] = replace(uses[place], path=path)
        return replace(wanted, loras=tuple(uses))

    return Value(label, mark, change)
