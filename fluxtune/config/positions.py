"""On which line each key of a TOML file stands.

TOML parsers return values without positions, so the text is scanned once more. The scan follows the grammar
(https://toml.io/en/v1.1.0) and checks nothing: it is for text that a parser has accepted, or has up to some place.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from contextlib import suppress
from typing import TypeAlias

KeyPath: TypeAlias = tuple["str | int", ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\n]*")
_STRINGS = {
    '"""': re.compile(r'"""(?:\\.|[^\\])*?"""(?!")', re.DOTALL),
    "'''": re.compile(r"'''.*?'''(?!')", re.DOTALL),
    '"': re.compile(r'"(?:\\.|[^"\\])*"'),
    "'": re.compile(r"'[^']*'"),
}
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))")
_ESCAPED = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", "e": "\x1b", '"': '"', "\\": "\\"}


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line, from 1, of every table, key and list item of valid TOML.

    Keys and list positions make up a path: ``[[dataset.folders]]`` with a key ``path`` gives
    ``("dataset", "folders", 0, "path")``. A table that is only implied has the line where it is first implied.
    """
    return _Scan(text).run()


def statement_line(text: str, end: int) -> int:
    """The line, from 1, on which the last statement begins that begins at or before ``end``.

    What stands before that statement must be valid TOML; it itself need not be.
    """
    scan = _Scan(text)
    # Past the end of the text, at what no statement begins with, or in lists within lists without end.
    with suppress(IndexError, ValueError, RecursionError):
        scan.run()
    start = max((start for start in scan.starts if start <= end), default=0)
    return text.count("\n", 0, start) + 1


class _Scan:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.starts: list[int] = []
        self.line_ends = [match.start() for match in re.finditer("\n", text)]
        self.lines: dict[KeyPath, int] = {}
        self.rows: dict[KeyPath, int] = {}

    def run(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        self.take(_BLANK)
        while self.at < len(self.text):
            self.starts.append(self.at)
            if self.text.startswith("[", self.at):
                table = self.header()
            else:
                self.pair(table)
            self.take(_BLANK)
        return self.lines

    def header(self) -> KeyPath:
        """`[table]` or `[[row of a list of tables]]`: the path that the following keys are put under."""
        brackets = 2 if self.text.startswith("[[", self.at) else 1
        line = self.line()
        self.at += brackets
        keys = self.keys()
        self.take(_SPACE)
        self.at += brackets
        path: KeyPath = ()
        for depth, key in enumerate(keys, start=1):
            path = (*path, key)
            self.lines.setdefault(path, line)
            if brackets == 2 and depth == len(keys):
                self.rows[path] = self.rows.get(path, 0) + 1
            if path in self.rows:
                path = (*path, self.rows[path] - 1)
                self.lines.setdefault(path, line)
        return path

    def pair(self, table: KeyPath) -> None:
        """`a.b = value`"""
        line = self.line()
        path = table
        for key in self.keys():
            path = (*path, key)
            self.lines.setdefault(path, line)
        self.take(_SPACE)
        self.at += len("=")
        self.value(path)

    def value(self, path: KeyPath) -> None:
        self.take(_SPACE)
        opening = self.text[self.at]
        if opening == "[":
            self.items(path)
        elif opening == "{":
            self.inline_table(path)
        elif opening in "\"'":
            self.string()
        else:
            self.take(_SCALAR)

    def items(self, path: KeyPath) -> None:
        count = 0
        while not self.closed("]"):
            item = (*path, count)
            self.lines.setdefault(item, self.line())
            self.value(item)
            count += 1

    def inline_table(self, path: KeyPath) -> None:
        while not self.closed("}"):
            self.pair(path)

    def closed(self, bracket: str) -> bool:
        """Step over the opening bracket or the comma before an item; true when the list ends instead."""
        if self.text[self.at] in "[{,":
            self.at += 1
        self.take(_BLANK)
        if self.text[self.at] == ",":
            return self.closed(bracket)
        if self.text[self.at] == bracket:
            self.at += 1
            return True
        return False

    def keys(self) -> list[str]:
        """A dotted key, as its parts."""
        parts = []
        while True:
            self.take(_SPACE)
            quoted = self.text[self.at] in "\"'"
            parts.append(_unquoted(self.string()) if quoted else self.take(_BARE_KEY))
            self.take(_SPACE)
            if not self.text.startswith(".", self.at):
                return parts
            self.at += 1

    def string(self) -> str:
        triple = self.text[self.at : self.at + 3]
        return self.take(_STRINGS.get(triple, _STRINGS[triple[0]]))

    def take(self, pattern: re.Pattern[str]) -> str:
        """The text that ``pattern`` matches here, stepping over it."""
        match = pattern.match(self.text, self.at)
        if match is None:
            raise ValueError("only text that a TOML parser has accepted has positions")
        self.at = match.end()
        return match.group()

    def line(self) -> int:
        return bisect_right(self.line_ends, self.at) + 1


def _unquoted(key: str) -> str:
    """A quoted key's name: single quotes are literal, double quotes know escapes."""
    if key.startswith("'"):
        return key[1:-1]
    return _ESCAPE.sub(lambda m: _ESCAPED[m[4]] if m[4] else chr(int(m[1] or m[2] or m[3], 16)), key[1:-1])
