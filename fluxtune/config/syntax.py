"""What is wrong with a text that is no TOML: in plain words, with the line to mend."""

from __future__ import annotations

import re

import tomli

from fluxtune.config.positions import statement_line
from fluxtune.errors import UsageError

_TWICE = "the key is set twice, or is both a value and a section"
_NEITHER = "a line is neither `key = value` nor a [section]"
_OPEN_QUOTE = "a text is opened with a quote and not closed on its line"
_NEVER_CLOSED = "a quote or a bracket is opened here and never closed"
_WORDS = {
    "Cannot overwrite a value": _TWICE,
    "Cannot declare": _TWICE,
    "Cannot mutate immutable namespace": _TWICE,
    "Cannot redefine namespace": _TWICE,
    "Duplicate inline table key": _TWICE,
    "Invalid value": "there is no value that TOML knows; text stands in quotes",
    "Invalid date or datetime": "there is no such date or time; text stands in quotes",
    "Expected newline or end of document after a statement": "something follows the value on the same line",
    "Invalid statement": _NEITHER,
    "Invalid initial character for a key part": _NEITHER,
    "Expected '=' after a key in a key/value pair": _NEITHER,
    "Expected ']": "a [section] has a bracket that is not closed, or a name that is none",
    "Illegal character '\\n'": _OPEN_QUOTE,
    "Found invalid character '\\n'": _OPEN_QUOTE,
    "Unescaped '\\'": "a backslash in a text: write it twice, or put the text in single quotes",
    "Unclosed": _NEVER_CLOSED,
}
"""How a message of the parser begins -> what it means."""

_NEW_STATEMENT = re.compile(r"\s*(\[+\s*[A-Za-z]|[A-Za-z0-9_.\"'-]+\s*=)")
_DIGITS = re.compile(r"[0-9][0-9_]{4000,}")
_LONGEST_SHOWN = 100


def syntax_error(text: str, source: str, error: Exception) -> UsageError:
    """What a TOML parser says of ``text``.

    A list or text that is never closed lets a parser read on until it meets something odd, so that the line to mend is
    the one where the statement begins.
    """
    lines = text.split("\n")
    if isinstance(error, tomli.TOMLDecodeError):
        words = next((plain for start, plain in _WORDS.items() if error.msg.startswith(start)), _lowered(error.msg))
        line, begin = error.lineno, statement_line(text, error.pos)
        at_end = not text[error.pos :].strip()
        if begin < line and (at_end or _NEW_STATEMENT.match(lines[line - 1])):
            line, words = begin, _NEVER_CLOSED
    elif isinstance(error, RecursionError):
        line, words = statement_line(text, len(text)), "lists or tables are nested too deeply"
    else:
        found = _DIGITS.search(text)
        line, words = text.count("\n", 0, found.start() if found else 0) + 1, "a number has too many digits"
    shown = shortened(lines[line - 1].strip())
    return UsageError(f"not valid TOML: {words}", where=f"{source}:{line}", hint=f"mend this line: {shown}")


def shortened(text: str, *, from_end: bool = False) -> str:
    """A line as far as a message shows it."""
    if len(text) <= _LONGEST_SHOWN:
        return text
    return f"...{text[3 - _LONGEST_SHOWN :]}" if from_end else f"{text[: _LONGEST_SHOWN - 3]}..."


def _lowered(words: str) -> str:
    return words[:1].lower() + words[1:]
