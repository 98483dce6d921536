"""What is wrong with a layer of settings, in the words of the schema.

pydantic finds what is wrong; the words are ours: what was seen, what is wanted, and one thing to do about it.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from fluxtune.config.documents import Layer
from fluxtune.config.positions import KeyPath
from fluxtune.config.schema import Config
from fluxtune.config.settings import Setting, defaults, sections, settings, shown
from fluxtune.errors import FluxtuneError, UsageError


def problems_of(layer: Layer) -> list[FluxtuneError]:
    """Every setting of ``layer`` that the schema refuses, in the order of its lines."""
    try:
        Config.model_validate(layer.values)
    except ValidationError as error:
        found: dict[KeyPath, FluxtuneError] = {}
        for detail in error.errors(include_url=False):
            path, seen = _refused(layer.values, detail["loc"])
            if path not in found:
                found[path] = _problem(layer, path, seen, detail["type"])
        return [found[path] for path in sorted(found, key=lambda path: layer.lines.get(path, 0))]
    return []


def nearest(name: str, names: list[str]) -> str | None:
    """The name that ``name`` was probably meant to be."""
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    return close[0] if close else None


def _refused(values: dict[str, Any], location: tuple[int | str, ...]) -> tuple[KeyPath, Any]:
    """The part of pydantic's location that exists in the layer, and the value there.

    A location may end in a marker that pydantic adds for the alternatives of a union, or in a key that is missing.
    """
    path: KeyPath = ()
    value: Any = values
    for part in location:
        inside = part in value if isinstance(value, dict) else isinstance(value, list) and isinstance(part, int)
        if not inside:
            break
        value = value[part]
        path = (*path, part)
    return path, value


def _problem(layer: Layer, path: KeyPath, seen: Any, kind: str) -> FluxtuneError:
    key = dotted(path)
    where = layer.where(path)
    if kind == "extra_forbidden":
        return UsageError(f"unknown setting {key}", where=where, hint=_suggestion(key))
    if kind == "missing":
        help = settings()[f"{key}.path"].help
        return UsageError(f"a row of {key} has no path", where=where, hint=f"add path: {help}")
    if key in sections():
        return UsageError(
            f"{key} is {shown(seen)}: wanted a section of settings",
            where=where,
            hint=f"name one of its settings: {_names_in(key)}",
        )
    setting = settings()[key]
    verb = "has" if isinstance(path[-1], int) else "is"
    return UsageError(f"{key} {verb} {shown(seen)}: wanted {setting.wanted}", where=where, hint=_advice(setting, seen))


def dotted(path: KeyPath) -> str:
    """A key path as a dotted name, without the numbers of rows and list items."""
    return ".".join(part for part in path if isinstance(part, str))


def _suggestion(key: str) -> str:
    """What an unknown key was probably meant to be: the same name in another section, or one spelled nearly so."""
    section, _, name = key.rpartition(".")
    every = [*settings(), *sections()]
    same_name = [known for known in every if known.rpartition(".")[2] == name]
    if same_name:
        return f"{name} belongs elsewhere: {' or '.join(same_name)}"
    siblings = {known.rpartition(".")[2]: known for known in every if known.rpartition(".")[0] == section}
    anywhere = {known.rpartition(".")[2]: known for known in every}
    for candidates in (siblings, anywhere):
        if close := nearest(name, list(candidates)):
            return f"did you mean {candidates[close]}?"
    return f"the settings of [{section}] are {_names_in(section)}" if section else f"the sections are {_names_in('')}"


def _names_in(section: str) -> str:
    every = [*settings(), *sections()]
    return ", ".join(known.rpartition(".")[2] for known in every if known.rpartition(".")[0] == section)


def _advice(setting: Setting, seen: Any) -> str:
    name = setting.key.rpartition(".")[2]
    if isinstance(seen, str):
        close = nearest(seen.lower(), list(setting.choices))
        if close:
            return f'did you mean "{close}"?'
        if "boolean" in setting.kinds and seen.lower() in ("true", "false"):
            return f"write it without quotes: {name} = {seen.lower()}"
        if setting.kinds & {"integer", "number"} and _is_number(seen):
            return f"write it without quotes: {name} = {seen}"
    if "string" in setting.kinds and not setting.choices and isinstance(seen, (bool, int, float)):
        return f'put it in quotes: {name} = "{seen}"'
    default = f" The default is {shown(defaults()[setting.key])}." if setting.key in defaults() else ""
    return f"{setting.help}{default}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
