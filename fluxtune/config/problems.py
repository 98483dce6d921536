"""What is wrong with a layer of settings, in the words of the schema.

pydantic finds what is wrong; the words are ours: what was seen, what is wanted, and one thing to do about it.
"""

from __future__ import annotations

import re
import unicodedata
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from fluxtune.config.documents import Layer
from fluxtune.config.positions import KeyPath
from fluxtune.config.schema import Config
from fluxtune.config.settings import Setting, defaults, sections, settings, shown
from fluxtune.errors import FluxtuneError, UsageError

MOST = 50
"""Problems of one layer that are told; where there are more, something else than the settings is wrong."""

_LONGEST_NAME = 60
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,60}")


def problems_of(layer: Layer) -> list[FluxtuneError]:
    """Every setting of ``layer`` that the schema refuses, in the order of its lines; of very many the first."""
    try:
        Config.model_validate(layer.values)
    except ValidationError as error:
        found: dict[KeyPath, tuple[Any, str]] = {}
        for detail in error.errors(include_url=False, include_input=False):
            path, seen = _refused(layer.values, detail["loc"])
            found.setdefault(path, (seen, detail["type"]))
        # Of a list that may also be a name, what is wrong with an item says more than that it is no name.
        outer = {path[:-1] for path in found if isinstance(path[-1], int)}
        paths = sorted(found.keys() - outer, key=lambda path: layer.lines.get(path, 0))
        problems = [_problem(layer, path, *found[path]) for path in paths[:MOST]]
        if len(paths) > MOST:
            rest = f"and {len(paths) - MOST:,} problems more"
            problems.append(UsageError(rest, where=layer.source, hint="mend these, or check that this is the file"))
        return problems
    return []


def nearest(name: str, names: list[str]) -> str | None:
    """The name that ``name`` was probably meant to be."""
    if len(name) > _LONGEST_NAME:
        return None
    close = get_close_matches(name.lower().replace("-", "_"), names, n=1, cutoff=0.6)
    return close[0] if close else None


def _refused(values: dict[str, Any], location: tuple[int | str, ...]) -> tuple[KeyPath, Any]:
    """The part of pydantic's location that exists in the layer, and the value there.

    A location may hold a marker that pydantic adds for the alternatives of a union, or end in a key that is missing.
    """
    path: KeyPath = ()
    value: Any = values
    for part in location:
        inside = part in value if isinstance(value, dict) else isinstance(value, list) and isinstance(part, int)
        if inside:
            value = value[part]
            path = (*path, part)
    return path, value


def _problem(layer: Layer, path: KeyPath, seen: Any, kind: str) -> FluxtuneError:
    key = dotted(path)
    where = layer.where(path)
    if kind == "extra_forbidden":
        return UsageError(f"unknown setting {key}", where=where, hint=_suggestion(path))
    if kind == "missing":
        help = settings()[f"{key}.path"].help
        return UsageError(f"a row of {key} has no path", where=where, hint=f"add path: {help}")
    if key in sections():
        rows = isinstance(seen, list) and bool(seen) and isinstance(seen[0], dict)
        hint = f"write [{key}], in single brackets" if rows else f"name one of its settings: {_names_in(key)}"
        return UsageError(f"{key} is {shown(seen)}: wanted a section of settings", where=where, hint=hint)
    setting = settings()[key]
    if kind == "string_unicode":
        hint = "rename it, or set the locale of your terminal to UTF-8 (LANG=C.UTF-8)"
        return UsageError(
            f"{key} is {shown(seen)}, which is no UTF-8 text: wanted {setting.wanted}", where=where, hint=hint
        )
    verb = "has" if isinstance(path[-1], int) else "is"
    return UsageError(f"{key} {verb} {shown(seen)}: wanted {setting.wanted}", where=where, hint=_advice(setting, seen))


def dotted(path: KeyPath) -> str:
    """A key path as a dotted name, without the numbers of rows and list items; in quotes what TOML has in quotes."""
    return ".".join(part if _BARE_KEY.fullmatch(part) else shown(part) for part in path if isinstance(part, str))


def _suggestion(path: KeyPath) -> str:
    """What an unknown key was probably meant to be: the same name in another section, or one spelled nearly so."""
    *above, name = [part for part in path if isinstance(part, str)]
    section = ".".join(above)
    every = [*settings(), *sections()]
    if "." in name and name in every:
        return f"write it without quotes: {name}"
    same_name = [known for known in every if known.rpartition(".")[2] == name]
    if same_name:
        return f"{name} belongs elsewhere: {' or '.join(same_name)}"
    siblings = {known.rpartition(".")[2]: known for known in every if known.rpartition(".")[0] == section}
    anywhere = {known.rpartition(".")[2]: known for known in every}
    for candidates in (siblings, anywhere):
        if close := nearest(name, list(candidates)):
            return f"did you mean {candidates[close]}?{_look_alikes(name)}"
    return f"the settings of [{section}] are {_names_in(section)}" if section else f"the sections are {_names_in('')}"


def _look_alikes(name: str) -> str:
    """The first letter of a name that no setting has in its name: it may look like one that they have."""
    other = next((letter for letter in name if not letter.isascii()), None)
    return f" There is {unicodedata.name(other, 'an unknown letter')} in it." if other else ""


def _names_in(section: str) -> str:
    every = [*settings(), *sections()]
    return ", ".join(known.rpartition(".")[2] for known in every if known.rpartition(".")[0] == section)


def _advice(setting: Setting, seen: Any) -> str:
    name = setting.key.rpartition(".")[2]
    if isinstance(seen, str) and len(seen) <= _LONGEST_NAME:
        close = nearest(seen.lower(), list(setting.choices))
        if close:
            return f'did you mean "{close}"?{_look_alikes(seen)}'
        if "boolean" in setting.kinds and seen.lower() in ("true", "false"):
            return f"write it without quotes: {name} = {seen.lower()}"
        if setting.kinds & {"integer", "number"} and _is_number(seen):
            return f"write it without quotes: {name} = {seen}"
    if "string" in setting.kinds and not setting.choices and not isinstance(seen, str | list | dict):
        return f'put it in quotes: {name} = "{shown(seen)}"'
    default = f" The default is {shown(defaults()[setting.key])}." if setting.key in defaults() else ""
    return f"{setting.help}{default}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
