"""`--explain`: every setting, its value, where that comes from, and what it does."""

from __future__ import annotations

import json
import sys

from fluxtune.cli.render import json_lines, write_line
from fluxtune.config.layers import Resolved
from fluxtune.config.settings import defaults, sections, settings, values_of
from fluxtune.events import Result
from fluxtune.sentences import printable_lines


def explain(resolved: Resolved, as_json: bool) -> None:
    """Write the table to stdout, or as one `result` record."""
    if as_json:
        json_lines(sys.stdout)(Result("explain", {"settings": _rows(resolved)}))
    else:
        write_line(sys.stdout, printable_lines(_table(resolved)))


def _rows(resolved: Resolved) -> list[dict[str, object]]:
    standard = defaults()
    return [
        {
            "key": key,
            "value": value,
            "origin": resolved.origins[key],
            "default": standard[key],
            "wanted": settings()[key].wanted,
            "help": settings()[key].help,
        }
        for key, value in values_of(resolved.config).items()
    ]


def _table(resolved: Resolved) -> str:
    """TOML that reads back as the same settings: help above each, its origin beside it."""
    values = values_of(resolved.config)
    lines = []
    section = ""
    for key, value in values.items():
        heading, _, name = key.rpartition(".")
        if heading != section:
            section = heading
            lines += ["", f"[{section}]  # {sections()[section]}"]
        assignment = f"# {name} is unset" if value is None else f"{name} = {_toml(value)}"
        lines += [f"# {settings()[key].help}", f"{assignment:<44}  # {resolved.origins[key]}"]
    return "\n".join(lines)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)
