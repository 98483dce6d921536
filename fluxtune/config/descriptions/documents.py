"""A document of another trainer, TOML, YAML or JSON, with the line of each key, and its tables with checked types."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fluxtune.config.documents import Layer, read_layer, read_text
from fluxtune.config.positions import KeyPath
from fluxtune.config.settings import shown
from fluxtune.errors import ConfigError, FluxtuneError, UsageError

T = TypeVar("T")

_LARGEST = 2**20
"""Bytes. Much more than any description has; to look for the lines of the keys in a megabyte takes seconds."""

_NEUTRAL: tuple[object, ...] = (None, False, 0, 0.0, "", [], {})
"""Values that switch something off: a key that has no counterpart loses nothing by one of these."""


@dataclass(frozen=True)
class Remark:
    """What a reader says of a key that it cannot take over: a ``warning`` where that changes what is learned, else a
    ``note``."""

    severity: str
    where: str
    message: str


@dataclass
class Document:
    """A file that was read, and what is said of it on the way.

    Attributes:
        content: the file as a ``Layer``: its values, its lines, and what relative paths in it are relative to.
        trainer: whose convention it follows, as people call it.
        problems: what is wrong with it; all of it is told at once.
        remarks: what has no counterpart here.
    """

    content: Layer
    trainer: str
    problems: list[FluxtuneError] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)

    def refuse(self, path: KeyPath, message: str, hint: str) -> None:
        """The file cannot be used as long as this stands in it."""
        self.problems.append(UsageError(message, where=self.content.where(path), hint=hint))

    def warn(self, path: KeyPath, message: str) -> None:
        """What is learned here differs from what it is there."""
        self._remark("warning", path, message)

    def note(self, path: KeyPath, message: str) -> None:
        """Good to know, of no effect."""
        self._remark("note", path, message)

    def _remark(self, severity: str, path: KeyPath, message: str) -> None:
        remark = Remark(severity, self.content.where(path), message)
        if remark not in self.remarks:
            self.remarks.append(remark)

    def folder_at(self, text: str) -> str:
        """A folder that the file names: beside it, or in the working folder, as the trainers have it.

        A path that is nowhere is looked for beside the file by its last name: an export may have been moved.
        """
        # Unlike Path.expanduser, this leaves the home folder of a user who does not exist as it is written.
        path = Path(os.path.expanduser(text))
        beside = self.content.folder / path
        last = self.content.folder / text.rstrip("/\\").replace("\\", "/").rpartition("/")[2]
        return str(next((each for each in (beside, Path.cwd() / path, last) if os.path.isdir(each)), beside))


class Table:
    """A table of a document; with ``above``, keys that it lacks are taken from the tables above it."""

    def __init__(self, document: Document, path: KeyPath, values: dict[str, Any], above: Table | None = None) -> None:
        self.document = document
        self.path = path
        self.values = values
        self.above = above
        self.taken: set[str] = set()

    def take(self, key: str, *kinds: type[T]) -> T | None:
        """The value of a key, or None where it is not set; one of another type is a problem of the document."""
        self.taken.add(key)
        if key not in self.values:
            return self.above.take(key, *kinds) if self.above is not None else None
        value = self.values[key]
        if value is None or (isinstance(value, kinds) and _is_sound(value, bool in kinds)):
            return value
        wanted = " or ".join(_WORDS[kind] for kind in kinds)
        message = f"{key} is {shown(value) if _is_plain(value) else _WORDS.get(type(value), value)}: wanted {wanted}"
        self.document.refuse((*self.path, key), message, f"see what {self.document.trainer} takes there")
        return None

    def where(self, key: str) -> KeyPath:
        """Where a key stands, in this table or above it."""
        if key in self.values or self.above is None:
            return (*self.path, key)
        return self.above.where(key)

    def tables(self, key: str) -> Iterator[Table]:
        """The rows of a list of tables."""
        rows = self.take(key, list) or []
        for index, row in enumerate(rows):
            if isinstance(row, dict):
                yield Table(self.document, (*self.path, key, index), row)
            else:
                self.document.refuse((*self.path, key, index), f"a row of {key} is no table", "give it keys and values")

    def warn(self, key: str, message: str) -> None:
        """Say that a key, which is looked at hereby, means something else here."""
        self.taken.add(key)
        value = self.values.get(key)
        if value not in _NEUTRAL:
            self.document.warn((*self.path, key), f"{key} = {shown(value) if _is_plain(value) else '...'}: {message}")
        if self.above is not None:
            self.above.warn(key, message)

    def finish(self, technical: Iterable[str] = ()) -> None:
        """Say of every key that nobody took that it has no counterpart here.

        Args:
            technical: keys that say how the trainer works, and not what it learns.
        """
        left = [key for key in self.values if key not in self.taken]
        quiet = [key for key in left if key in set(technical)]
        if quiet:
            message = f"no matter here: {', '.join(map(str, quiet))}"
            self.document.note((*self.path, quiet[0]), message)
        for key in left:
            if key not in quiet and self.values[key] not in _NEUTRAL:
                self.document.warn((*self.path, key), f"{key} has no counterpart here, and is not taken over")


_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


def _is_sound(value: object, as_switch: bool) -> bool:
    """Whether a value of the right type is one: for Python True is a number, and neither a zero byte nor half a letter
    (a lone surrogate) is text that a path or a caption can have in it."""
    match value:
        case bool():
            return as_switch
        case int() | float():
            return abs(value) < 2**63
        case str():
            return not any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in value)
        case _:
            return True


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float | bool)


def read_document(file: Path, source: str) -> Layer:
    """A TOML, YAML or JSON file by its ending; the line of each key comes along.

    Raises:
        UsageError: it cannot be read, is no text of its kind, says something twice, or is too large to describe a data
            set; ``where`` has the line.
    """
    if file.stat().st_size > _LARGEST:
        message = f"this is too large for a description of a data set: {file.stat().st_size / 2**20:.1f} MiB"
        hint = "captions go into a metadata.jsonl in the folder of pictures, with file_name and text"
        raise UsageError(message, where=source, hint=hint)
    if file.suffix.lower() == ".toml":
        return read_layer(file, source)
    text = read_text(file, source)
    values, lines = _json(text, source) if file.suffix.lower() == ".json" else _yaml(text, source)
    folder = file.absolute().parent
    if isinstance(values, list):
        # A list has no keys of its own: its rows stand under an empty one.
        return Layer(source, {"": values}, folder, {("", *path): line for path, line in lines.items()})
    return Layer(source, values if isinstance(values, dict) else {}, folder, lines)


def _json(text: str, source: str) -> tuple[Any, dict[KeyPath, int]]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        message = f"not valid JSON: {error.msg}"
        raise UsageError(message, where=f"{source}:{error.lineno}", hint="mend this line") from error
    except ValueError as error:  # numbers without end
        raise UsageError(f"not valid JSON: {error}", where=source, hint="mend the file") from error
    except RecursionError as error:
        raise UsageError("not valid JSON: it is nested too deeply", where=source, hint="mend the file") from error
    from fluxtune.config.descriptions import yaml_text

    try:
        root = yaml_text.compose(text.replace("\t", " "))
    except yaml_text.YamlError:
        return values, {}  # JSON that is no YAML: its keys are named without a line
    return values, _once(*yaml_text.lines_of(root), source)


def _yaml(text: str, source: str) -> tuple[Any, dict[KeyPath, int]]:
    from fluxtune.config.descriptions import yaml_text

    try:
        root = yaml_text.compose(text)
        lines = _once(*yaml_text.lines_of(root), source)
        return yaml_text.construct(root), lines
    except yaml_text.YamlError as error:
        where = source if error.line is None else f"{source}:{error.line}"
        hint = "mend this line; a path with backslashes needs no quotes, or '...'"
        raise UsageError(f"not valid YAML: {error.reason}", where=where, hint=hint) from error


def _once(lines: dict[KeyPath, int], twice: list[tuple[KeyPath, int]], source: str) -> dict[KeyPath, int]:
    """The lines, if no key is set twice: a trainer takes the last one, and nobody sees which that is."""
    problems: list[FluxtuneError] = [
        UsageError(f"{path[-1]} is set twice", where=f"{source}:{line}", hint="keep one of them")
        for path, line in twice
    ]
    if problems:
        raise ConfigError(problems)
    return lines
