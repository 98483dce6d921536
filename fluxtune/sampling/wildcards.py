"""Prompts that are drawn: ``{red|blue}`` is one of both, ``__colour__`` a line of ``colour.txt``.

A draw is a pure function of the picture's seed, the prompt as it is written, and the place in it: so a picture comes
out the same alone or among others, with and without a LoRA. ``\\{``, ``\\}``, ``\\|`` and ``\\__`` stand for the signs
themselves.
"""

from __future__ import annotations

import re
from pathlib import Path

from fluxtune import rng
from fluxtune.config.documents import read_text
from fluxtune.errors import UsageError

_DRAWN = re.compile(r"\{(?P<choices>[^{}]*\|[^{}]*)\}|__(?P<name>\w(?:[\w ./-]*?\w)??)__")
_MOST_DRAWS = 1000
_SPECIAL = r"[{}|]|__"
_HELD = {"{": "\ufdd0", "}": "\ufdd1", "|": "\ufdd2", "__": "\ufdd3"}
"""What an escaped sign is while a prompt is drawn: code points that Unicode keeps free for the inside of programs."""


def drawn(template: str, seed: int, folder: Path | None) -> str:
    """The prompt that a seed makes of a template; what was drawn may hold choices and wildcards again.

    Args:
        folder: of the files of wildcards.

    Raises:
        UsageError: there is no such file, nothing is in it, or files name one another in a circle.
    """
    text = _held(template)
    for number in range(_MOST_DRAWS):
        found = _DRAWN.search(text)
        if found is None:
            return _released(text)
        name = found["name"]
        options = found["choices"].split("|") if name is None else list(map(_held, _lines(name, folder)))
        chosen = options[int(rng.uniform(seed, "wildcard", template, number) * len(options))]
        text = text[: found.start()] + chosen.strip() + text[found.end() :]
    raise UsageError(
        f"this prompt is drawn without end, after {_MOST_DRAWS} draws",
        where=template[:80],
        hint="look for wildcard files that name one another in a circle",
    )


def literal(text: str) -> str:
    """The template of which every seed makes this very text."""
    return re.sub(_SPECIAL, r"\\\g<0>", text)


def alternatives(text: str) -> list[str]:
    """Templates with ``|`` between them; that of a choice, and one that is escaped, is part of its template."""
    parts, depth = [""], 0
    for sign in _held(text):
        depth = max(depth + (sign == "{") - (sign == "}"), 0)
        if sign == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [_released(part, "\\") for part in parts]


def _held(text: str) -> str:
    return re.sub(rf"\\({_SPECIAL})", lambda found: _HELD[found[1]], text)


def _released(text: str, escape: str = "") -> str:
    for sign, held in _HELD.items():
        text = text.replace(held, escape + sign)
    return text


def _lines(name: str, folder: Path | None) -> list[str]:
    if folder is None:
        raise UsageError(
            f"__{name}__ in a prompt is a wildcard, and there is no folder of wildcards",
            where="--wildcards",
            hint=f"give the folder that holds {name}.txt: --wildcards FOLDER",
        )
    file = folder / f"{name}.txt"
    if not file.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"the wildcard __{name}__ leads out of its folder", where=str(folder), hint="rename it")
    if not file.is_file():
        known = sorted(each.relative_to(folder).with_suffix("").as_posix() for each in folder.rglob("*.txt"))
        shown = ", ".join(f"__{each}__" for each in known[:12]) + (" ..." if len(known) > 12 else "")
        raise UsageError(
            f"there is no file for the wildcard __{name}__",
            where=str(file),
            hint=f"there are {shown}" if known else "put a text file of this name there, with a choice on each line",
        )
    found = [line.strip() for line in read_text(file, str(file)).split("\n")]
    options = [line for line in found if line and not line.startswith("#")]
    if not options:
        raise UsageError("there is nothing in this wildcard file", where=str(file), hint="write a choice on each line")
    return options
