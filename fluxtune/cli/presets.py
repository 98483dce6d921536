"""`fluxtune presets`: which presets there are, what each is for, and where it is."""

from __future__ import annotations

import sys

from fluxtune.cli.options import Json
from fluxtune.cli.render import json_lines, write_line
from fluxtune.config.presets import listing, user_folder
from fluxtune.events import Result
from fluxtune.sentences import printable


def presets(as_json: Json = False) -> None:
    """List the presets: those that ship, and your own.

    Your own are TOML files; `--preset ./file.toml` takes one from anywhere.

    \b
    Examples:
      fluxtune presets
      fluxtune train photos --preset 24gb
    """
    found = listing()
    if as_json:
        rows = [
            {"name": each.name, "description": each.description, "kind": each.kind, "file": str(each.file)}
            for each in found
        ]
        json_lines(sys.stdout)(Result("presets", {"presets": rows, "folder": str(user_folder())}))
        return
    width = max(len(each.name) for each in found)
    for each in found:
        place = "" if each.kind == "built-in" else f"  ({each.file})"
        write_line(sys.stdout, printable(f"{each.name:<{width}}  {each.description}{place}"))
    write_line(sys.stderr, f"\nyour own go to {printable(str(user_folder()))}")
