"""Scripts that start a trainer, as people keep them: its options, each with its line. Nothing in them is run.

Words are split as a shell does: quotes, backslashes, variables that the script itself sets. A line goes on in the next
one behind a backslash, a caret (cmd) or a backtick (PowerShell).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fluxtune.config.positions import KeyPath
from fluxtune.errors import UsageError

_WORD = re.compile(
    r"""(?P<space>[ \t\r]+|[\\^`][ \t\r]*\n)|(?P<end>\n|;|&&|\|\|?|&)|(?P<comment>\#[^\n]*)|(?P<single>'[^']*')"""
    r"""|(?P<double>"(?:\\.|[^"\\])*")|(?P<escape>\\[\s\\"'$`;&|\#])"""
    r"""|(?P<plain>(?:(?![\^`][ \t\r]*\n)[^\s;&|'"\\])+|\\)""",
    re.DOTALL | re.VERBOSE,
)
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)


@dataclass
class Script:
    """What a script says.

    Attributes:
        options: name without dashes -> text, list of texts, or True for a switch; of a trainer that is started.
        variables: those that it sets.
        lines: the line of each of both.
    """

    options: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, Any] = field(default_factory=dict)
    lines: dict[KeyPath, int] = field(default_factory=dict)


def read_script(text: str, source: str) -> Script:
    """The options of the first command that runs a Python script or `simpletuner`, and all variables.

    Raises:
        UsageError: a quote is never closed.
    """
    script = Script()
    for command in _commands(text, source, script.variables):
        words = [word for word, _ in command]
        while words and (match := _ASSIGNMENT.fullmatch(words[0] if words[0] != "export" else " ".join(words[1:2]))):
            used = 2 if words[0] == "export" else 1
            script.variables[match[1]] = match[2]
            script.lines[(match[1],)] = command[used - 1][1]
            words, command = words[used:], command[used:]
        start = next((number for number, word in enumerate(words) if _is_trainer(word)), None)
        if start is not None and not script.options:
            name = words[start].replace("\\", "/").rpartition("/")[2]
            script.options["script"] = name
            script.lines[("script",)] = command[start][1]
            for key, value, line in _options(command[start + 1 :]):
                script.options[key] = value
                script.lines[(key,)] = line
    return script


def _is_trainer(word: str) -> bool:
    name = word.replace("\\", "/").rpartition("/")[2]
    return name.endswith(".py") or name in ("simpletuner", "simpletuner-train")


def _commands(text: str, source: str, variables: dict[str, Any]) -> Iterator[list[tuple[str, int]]]:
    """The words of each command with their lines; variables are replaced by what they are at that point."""
    words: list[tuple[str, int]] = []
    parts: list[str] = []
    begin, line, at = 1, 1, 0
    while at < len(text):
        match = _WORD.match(text, at)
        if match is None:
            raise UsageError("a quote is opened here and never closed", where=f"{source}:{line}", hint="close it")
        token, kind = match.group(), str(match.lastgroup)
        if kind in ("space", "end") or (kind == "comment" and not parts):
            words += [("".join(parts), begin)] if parts else []
            parts = []
        else:
            begin = begin if parts else line
            parts.append(_value(token, kind, variables))
        if kind == "end" and words:
            yield words
            words = []
        line += token.count("\n")
        at = match.end()
    words += [("".join(parts), begin)] if parts else []
    if words:
        yield words


def _value(token: str, kind: str, variables: dict[str, Any]) -> str:
    if kind == "single":
        return token[1:-1]
    if kind == "escape":
        return token[1:]
    text = re.sub(r'\\(["\\$`])', r"\1", token[1:-1]) if kind == "double" else token
    return _VARIABLE.sub(lambda match: str(variables.get(match[1] or match[2], match[0])), text)


def options_in(text: str, line: int, source: str) -> dict[str, Any]:
    """The options of a text that holds nothing else, as a variable for further arguments does."""
    (words, *_) = [*_commands(text, source, {}), []]
    return {key: value for key, value, _ in _options([(word, line) for word, _ in words])}


def _options(words: list[tuple[str, int]]) -> Iterator[tuple[str, Any, int]]:
    """``--a b c --d=e --f`` -> a: [b, c], d: e, f: True"""
    name, line, values = "", 0, []
    for word, number in [*words, ("--", 0)]:
        if not word.startswith("--"):
            values.append(word)
            continue
        if name:
            yield name, True if not values else values[0] if len(values) == 1 else values, line
        name, equals, value = word.removeprefix("--").partition("=")
        line, values = number, [value] if equals else []
