"""The settings of another trainer as somebody gave them: each asked for by its name, with its type and its line.

Command lines and environments know text alone, YAML reads 1e-4 as text, and people put numbers in quotes: a text that
is a number where a number is wanted is one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from fluxtune.config.descriptions.documents import Document
from fluxtune.config.positions import KeyPath
from fluxtune.config.settings import shown

_ON, _OFF = ("true", "yes", "on", "1"), ("false", "no", "off", "0", "none", "")
_MOST_SHOWN, _DEEPEST = 8, 12
_SILENT: tuple[object, ...] = (None, False, 0, "", [], {}, "false", "False", "none", "None")
"""Values that switch something off: nothing is lost by a key with one of these."""


@dataclass
class Given:
    """Settings by their dotted names.

    Attributes:
        document: where they stand, with what is said of them.
        values: name -> value; of tables within tables the names are joined with dots.
        lines: name -> path of the key in the document.
        pictures: how often pictures are seen in an epoch; None where they are not on this machine.
        asked: names that a rule has looked at.
    """

    document: Document
    values: dict[str, Any]
    lines: dict[str, KeyPath]
    pictures: int | None = None
    asked: set[str] = field(default_factory=set)

    def get(self, key: str, usual: Any = None) -> Any:
        """The value as it is; ``usual`` is what the trainer does without one."""
        self.asked.add(key)
        value = self.values.get(key)
        return usual if value is None else value

    def has(self, key: str) -> bool:
        """Whether somebody gave it."""
        return self.get(key) is not None

    def number(self, key: str, usual: Any = None) -> Any:
        """A number, ``usual`` where none is given or it is none."""
        return self._checked(key, usual, _number(self.get(key)), "a number")

    def whole(self, key: str, usual: Any = None) -> Any:
        """A whole number; one such as 16.0 is whole, too."""
        value = _number(self.get(key))
        value = int(value) if isinstance(value, float) and value.is_integer() else value
        return self._checked(key, usual, value if isinstance(value, int) else None, "a whole number")

    def switch(self, key: str, usual: Any = False) -> Any:
        """On or off."""
        value = self.get(key)
        if isinstance(value, str):
            value = True if value.lower() in _ON else False if value.lower() in _OFF else value
        elif isinstance(value, int):
            value = bool(value)
        return self._checked(key, usual, value if isinstance(value, bool) else None, "true or false")

    def text(self, key: str, usual: Any = None) -> Any:
        """Text that can be a name or a caption; a number is its digits."""
        value = self.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        sound = isinstance(value, str) and not any(each == "\0" or "\ud800" <= each <= "\udfff" for each in value)
        return self._checked(key, usual, value if sound else None, "text")

    def words(self, key: str) -> list[str]:
        """A list of texts; one text is a list of one."""
        value = self.get(key)
        words = [value] if isinstance(value, str) else value
        sound = isinstance(words, list) and all(isinstance(each, str) for each in words)
        return list(self._checked(key, [], words if sound else None, "a list of texts"))

    def pairs(self, key: str) -> dict[str, str]:
        """What stands in words such as ``weight_decay=0.01``, also several with commas or spaces between."""
        words = [part for word in self.words(key) for part in word.replace(",", " ").split() if "=" in part]
        return {name: value for name, _, value in (word.partition("=") for word in words)}

    def rows(self, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """The tables of a list of tables, with their numbers."""
        rows = self.get(key, [])
        if not isinstance(rows, list):
            self.refuse(key, f"{key} is {brief(rows)}: wanted a list")
            return
        for index, row in enumerate(rows):
            if isinstance(row, dict):
                yield index, row
            else:
                self.refuse(key, f"a row of {key} is {brief(row)}: wanted a table")

    def where(self, key: str) -> KeyPath:
        """Where it stands in the document."""
        return self.lines.get(key, ())

    def warn(self, key: str, message: str) -> None:
        """What is learned here differs from what it is there."""
        self.document.warn(self.where(key), message)

    def note(self, key: str, message: str) -> None:
        """Good to know, of no effect on what is learned."""
        self.document.note(self.where(key), message)

    def refuse(self, key: str, message: str, hint: str | None = None) -> None:
        """The file cannot be taken over as long as this stands in it."""
        self.document.refuse(self.where(key), message, hint or f"see what {self.document.trainer} takes there")

    def number_in(self, key: str, text: object) -> Any:
        """A number within a value that is more than one; None, and a problem of the file, where it is none."""
        number = _number(text)
        if number is None:
            self.refuse(key, f"{brief(text)} in {key} is no number")
        return number

    def finish(self, technical: Collection[str], meanings: dict[str, str]) -> None:
        """Say of every key that no rule asked for what becomes of it.

        Args:
            technical: keys, or tables of them, that say how the trainer works and not what it learns.
            meanings: keys that mean something else here -> what.
        """
        quiet = []
        for key, value in self.values.items():
            if key in self.asked or any(key.startswith(f"{table}.") for table in self.asked):
                continue
            if key in technical or any(key.startswith(f"{table}.") for table in technical):
                quiet.append(key)
            elif value not in _SILENT:
                said = meanings.get(key, "it has no counterpart here, and is not taken over")
                self.warn(key, f"{key} = {brief(value)}: {said}")
        if quiet:
            self.note(quiet[0], f"no matter here: {', '.join(quiet)}")

    def _checked(self, key: str, usual: Any, value: Any, wanted: str) -> Any:
        seen = self.values.get(key)
        if value is None and seen is not None:
            self.refuse(key, f"{key} is {brief(seen)}: wanted {wanted}")
        return usual if value is None else value


def _number(value: object) -> int | float | None:
    """A finite number, or text that is one; what is larger than any setting is none."""
    if isinstance(value, str):
        try:
            value = float(value) if set(value) & set(".eEnN") else int(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if isfinite(value) and abs(value) < 2**63 else None


def brief(value: object) -> str:
    """A value for a message; of lists and tables that may hold anything, three dots."""
    plain = value if isinstance(value, list) else [value]
    is_short = len(plain) <= _MOST_SHOWN and all(isinstance(each, str | int | float | None) for each in plain)
    return shown(value) if is_short else "..."


def flattened(values: dict[str, Any], at: KeyPath = (), prefix: str = "") -> Iterator[tuple[str, Any, KeyPath]]:
    """Every value of tables within tables: its dotted name, itself, and its path; lists are values, and so are tables
    that lie deeper than any settings do, such as one that holds itself."""
    for key, value in values.items():
        name, path = f"{prefix}{key}", (*at, key)
        if isinstance(value, dict) and value and len(path) < _DEEPEST:
            yield from flattened(value, path, f"{name}.")
        else:
            yield name, value, path
