"""The schema as a list of settings, each described in plain words for help, `--explain` and error messages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date, time
from functools import cache
from typing import Any

from pydantic.fields import FieldInfo

from fluxtune.config.schema import Config

_LONGEST_SHOWN = 60


@dataclass(frozen=True)
class Setting:
    """One setting of the schema.

    Attributes:
        key: dotted name; the keys of a ``[[dataset.folders]]`` row are named ``dataset.folders.path`` and so on.
        help: what it does, in a sentence.
        wanted: its type, range and unit in words, for instance ``a whole number from 1 to 1024``.
        kinds: JSON types it takes, for instance ``{"string", "null"}``.
        choices: the values of an enumeration, else empty.
        path: ``path`` or ``path or id`` where a text names a file or folder.
        in_row: whether it is a key of a row of a list of tables.
    """

    key: str
    help: str
    wanted: str
    kinds: frozenset[str]
    choices: tuple[str, ...]
    path: str | None
    in_row: bool


@cache
def settings() -> dict[str, Setting]:
    """Every setting by its dotted key, in the order of the schema."""
    schema = _schema()
    return {setting.key: setting for setting in _walk(schema, schema["$defs"], prefix="", in_row=False)}


@cache
def sections() -> dict[str, str]:
    """Every section's dotted name and what it is about, without the unnamed one at the top."""
    schema = _schema()
    return dict(_sections(schema, schema["$defs"], prefix=""))


def defaults() -> dict[str, object]:
    """Every setting's default by its dotted key, without the keys of rows."""
    return values_of(Config())


def values_of(config: Config) -> dict[str, object]:
    """Every setting's value by its dotted key, without the keys of rows."""
    plain = config.model_dump()
    return {key: look_up(plain, key) for key, setting in settings().items() if not setting.in_row}


def field_of(key: str) -> FieldInfo:
    """The schema's entry of one setting: help and default, without the cost of describing them all."""
    *path, name = key.split(".")
    section: Any = Config
    for part in path:
        section = section.model_fields[part].annotation
    return section.model_fields[name]


def look_up(values: dict[str, Any], key: str) -> Any:
    """The value at a dotted key of nested tables.

    Raises:
        KeyError: the key is not there.
    """
    value: Any = values
    for part in key.split("."):
        if not isinstance(value, dict):
            raise KeyError(key)
        value = value[part]
    return value


def shown(value: object) -> str:
    """A value as TOML writes it, cut where it is long; ``unset`` for none."""
    if value is None:
        return "unset"
    try:
        plain = isinstance(value, float | date | time)
        text = str(value) if plain else json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):  # more digits than Python writes, lists within lists without end
        return "too large to show"
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."


@cache
def _schema() -> dict[str, Any]:
    return Config.model_json_schema()


def _walk(table: dict[str, Any], tables: dict[str, Any], prefix: str, in_row: bool) -> list[Setting]:
    found: list[Setting] = []
    for name, entry in table["properties"].items():
        key = f"{prefix}{name}"
        if "$ref" in entry:
            found += _walk(_target(entry, tables), tables, f"{key}.", in_row)
            continue
        found.append(
            Setting(
                key=key,
                help=entry.get("description", ""),
                wanted=_wanted(entry, key),
                kinds=frozenset(option.get("type", "") for option in _options(entry)),
                choices=tuple(choice for option in _options(entry) for choice in option.get("enum", ())),
                path=entry.get("path"),
                in_row=in_row,
            )
        )
        if "$ref" in entry.get("items", {}):
            found += _walk(_target(entry["items"], tables), tables, f"{key}.", in_row=True)
    return found


def _sections(table: dict[str, Any], tables: dict[str, Any], prefix: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, entry in table["properties"].items():
        if "$ref" in entry:
            section = _target(entry, tables)
            found.append((f"{prefix}{name}", section["description"].partition("\n")[0]))
            found += _sections(section, tables, f"{prefix}{name}.")
    return found


def _target(entry: dict[str, Any], tables: dict[str, Any]) -> dict[str, Any]:
    return tables[entry["$ref"].rsplit("/", 1)[-1]]


def _options(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return entry.get("anyOf", [entry])


def _wanted(entry: dict[str, Any], key: str) -> str:
    if "form" in entry:
        return entry["form"]
    if "path" in entry:
        return f"a {entry['path']}"
    words = " or ".join(_in_words(option, key) for option in _options(entry) if option.get("type") != "null")
    return f"{words} (in {entry['unit']})" if "unit" in entry else words


def _in_words(entry: dict[str, Any], key: str) -> str:
    if "enum" in entry:
        return "one of " + ", ".join(json.dumps(choice) for choice in entry["enum"])
    match entry["type"]:
        case "boolean":
            return "true or false"
        case "integer":
            return f"a whole number{_range(entry)}"
        case "number":
            return f"a number{_range(entry)}"
        case "string":
            return "text that is not empty" if entry.get("minLength") else "text"
        case "array" if "$ref" in entry["items"]:
            return f"a list of tables, each opened by [[{key}]]"
        case _:
            size = f" of at least {entry['minItems']}" if entry.get("minItems") else ""
            return f"a list{size}, each {_in_words(entry['items'], key)}"


def _range(entry: dict[str, Any]) -> str:
    low, above = entry.get("minimum"), entry.get("exclusiveMinimum")
    high, below = entry.get("maximum"), entry.get("exclusiveMaximum")
    if low is not None and high is not None:
        words = f" from {low:,g} to {high:,g}" if isinstance(low, float) else f" from {low:,} to {high:,}"
    else:
        bounds = (("of at least", low), ("above", above), ("at most", high), ("below", below))
        words = " and".join(f" {word} {bound:,}".removesuffix(".0") for word, bound in bounds if bound is not None)
    return words + (f", a multiple of {entry['multipleOf']}" if "multipleOf" in entry else "")
