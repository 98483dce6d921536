"""Files of prompts: text with one on each line, or TOML and JSON lines whose rows have settings of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tomli
from pydantic import Field, ValidationError

from fluxtune.config.base import Section, setting
from fluxtune.config.documents import read_text
from fluxtune.config.positions import KeyPath, key_lines
from fluxtune.config.previews import LAST_SEED, Seed, Side
from fluxtune.config.problems import nearest
from fluxtune.config.settings import shown
from fluxtune.config.syntax import syntax_error
from fluxtune.errors import ConfigError, FluxtuneError, UsageError
from fluxtune.sampling.wanted import MOST

HINT = "give a text file in UTF-8 with a prompt on each line, or TOML or JSON lines (docs/sampling.md)"
_SIZE = re.compile(r"(\d+)[xX\u00d7](\d+)")
_SIDE = "a whole number from 64 to 4096, a multiple of 16"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._ -]*$"


class PromptRow(Section):
    """A prompt with what it has of its own; what is unset is as for all others."""

    prompt: str = setting(form="text that is not blank", pattern=r"\S")
    negative_prompt: str | None = setting(None, form="text")
    seed: Seed | None = setting(None, form=f"a whole number from 0 to {LAST_SEED}")
    count: int | None = setting(None, form=f"a whole number from 1 to {MOST}", ge=1, le=MOST)
    width: Side | None = setting(None, form=_SIDE)
    height: Side | None = setting(None, form=_SIDE)
    steps: int | None = setting(None, form="a whole number from 1 to 1000", ge=1, le=1000)
    guidance: float | None = setting(None, form="a number from 0 to 100", ge=0.0, le=100.0)
    true_guidance: float | None = setting(None, form="a number above 1 and at most 100", gt=1.0, le=100.0)
    start: str | None = setting(None, form="a path", path="path")
    strength: float | None = setting(None, form="a number above 0 and at most 1", gt=0.0, le=1.0)
    name: str | None = Field(
        default=None,
        pattern=_NAME,
        max_length=60,
        json_schema_extra={"form": "letters, digits, spaces, dots, dashes and underscores, at most 60"},
    )


def read_prompts(file: Path) -> list[PromptRow]:
    """The rows of a file, told by its ending: ``.toml``, ``.jsonl``, else text.

    In TOML each ``[[prompts]]`` is a row, and what stands above them holds for all. Start pictures are relative to the
    file.

    Raises:
        UsageError: it cannot be read, or there is no prompt in it.
        ConfigError: with everything that is wrong with its rows, each at its line.
    """
    source = str(file)
    text = read_text(file, source, from_pipes=True)
    kind = file.suffix.lower()
    rows = list({".toml": _of_toml, ".jsonl": _of_json_lines}.get(kind, _of_text)(text, source))
    if not rows:
        raise UsageError("there is no prompt in this file", where=source, hint=HINT)
    read: list[PromptRow] = []
    problems: dict[str, FluxtuneError] = {}
    for values, where in rows:
        if isinstance(values.get("start"), str):
            values["start"] = str(file.parent / values["start"])
        try:
            read.append(_checked(values))
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                problem = _problem(detail, values, where)
                # What stands above all rows is wrong once, not in each of them.
                problems[str(problem)] = problem
    if problems:
        raise ConfigError(list(problems.values()))
    return read


def row_of(prompt: str) -> PromptRow:
    """A prompt that has nothing of its own.

    Raises:
        UsageError: it is blank.
    """
    return PromptRow(**row_value("prompt", prompt, "PROMPT"))


def row_value(key: str, value: Any, where: str) -> dict[str, Any]:
    """The fields of a row that one key of it sets, checked: of ``size`` both sides, else the key alone.

    Raises:
        UsageError: the value is none for the key.
    """
    try:
        row = _checked({"prompt": "any", key: value})
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        raise _problem(detail, {key: value}, lambda _: where) from error
    names = ("width", "height") if key == "size" else (key,)
    return {name: getattr(row, name) for name in names}


def sides(text: str) -> tuple[int, int] | None:
    """(width, height) of ``1024x768``; None where it is no size."""
    found = _SIZE.fullmatch(text)
    return (int(found[1]), int(found[2])) if found else None


def _checked(values: dict[str, Any]) -> PromptRow:
    if isinstance(size := values.get("size"), str) and (both := sides(size)):
        values = {name: value for name, value in values.items() if name != "size"}
        values = {"width": both[0], "height": both[1], **values}
    return PromptRow.model_validate(values)


_Where = Callable[[str | None], str]
"""The place of a key of a row, or of the row."""


def _of_text(text: str, source: str) -> Iterator[tuple[dict[str, Any], _Where]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield {"prompt": line.strip()}, lambda _, number=number: f"{source}:{number}"  # type: ignore[misc]


def _of_json_lines(text: str, source: str) -> Iterator[tuple[dict[str, Any], _Where]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{source}:{number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"this line is no JSON: {error}", where=where, hint=HINT) from error
        if isinstance(values, str):
            values = {"prompt": values}
        if not isinstance(values, dict):
            raise UsageError("this line is no JSON object", where=where, hint='for instance {"prompt": "a cup"}')
        yield values, lambda _, where=where: where  # type: ignore[misc]


def _of_toml(text: str, source: str) -> Iterator[tuple[dict[str, Any], _Where]]:
    try:
        values = tomli.loads(text)
        lines = key_lines(text)
    except (ValueError, RecursionError) as error:
        raise syntax_error(text, source, error) from error
    rows = values.pop("prompts", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(
            f"prompts is {shown(rows)}: wanted a table for each prompt",
            where=f"{source}:{lines[('prompts',)]}",
            hint="write [[prompts]] above each, and prompt = ... below it",
        )
    for number, row in enumerate(rows):

        def where(key: str | None, number: int = number) -> str:
            places: list[KeyPath] = [("prompts", number)]
            if key is not None:
                places = [("prompts", number, key), (key,), *places]
            return f"{source}:{next(lines[place] for place in places if place in lines)}"

        yield {**values, **row}, where


def _problem(detail: Any, values: dict[str, Any], where: _Where) -> UsageError:
    key = str(detail["loc"][0])
    known = [*PromptRow.model_fields, "size"]
    if detail["type"] == "missing":
        return UsageError("this row has no prompt", where=where(None), hint='add prompt = "..."')
    if key == "size":
        return UsageError(
            f"size is {shown(values[key])}: wanted WIDTHxHEIGHT", where=where(key), hint="for instance 1024x768"
        )
    if detail["type"] == "extra_forbidden":
        close = nearest(key, known)
        hint = f"did you mean {close}?" if close else f"the keys of a prompt are {', '.join(known)}"
        return UsageError(f"unknown key {shown(key)}", where=where(key), hint=hint)
    if key not in values:  # a side that the size gave
        key, wanted = "size", _SIDE
    else:
        extra: Any = PromptRow.model_fields[key].json_schema_extra
        wanted = extra["form"]
    no_text = ", which is no UTF-8 text" if detail["type"] == "string_unicode" else ""
    message = f"{key} is {shown(values[key])}{no_text}: wanted {wanted}"
    return UsageError(message, where=where(key), hint="mend this value")
