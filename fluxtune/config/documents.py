"""Reading a layer of settings from a TOML file, with the line of each key."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli

from fluxtune.config.positions import KeyPath, key_lines
from fluxtune.errors import UsageError

_PLAIN_WORDS = {
    "Cannot overwrite a value": "the key is set twice, or is both a value and a section",
    "Invalid value": "there is no value that TOML knows; text stands in quotes",
    "Expected newline or end of document after a statement": "something follows the value on the same line",
    "Invalid statement": "a line is neither `key = value` nor a [section]",
    "Expected '=' after a key in a key/value pair": "a line is neither `key = value` nor a [section]",
    "Illegal character '\\n'": "a text is opened with a quote and not closed on its line",
}


@dataclass(frozen=True)
class Layer:
    """One source of settings.

    Attributes:
        source: how errors name it: a file as the user would write it, or a flag.
        values: what it sets, as nested tables.
        folder: what relative paths in it are relative to.
        lines: line of each key path, where it is a file.
        label: what origins call it; ``{}`` stands for the place.
    """

    source: str
    values: dict[str, Any]
    folder: Path
    lines: dict[KeyPath, int] = field(default_factory=dict)
    label: str = "{}"

    def where(self, path: KeyPath) -> str:
        """The place of a key, or of the innermost table around it: ``fluxtune.toml:7`` or ``--steps``."""
        known = next((path[:end] for end in range(len(path), 0, -1) if path[:end] in self.lines), None)
        return self.source if known is None else f"{self.source}:{self.lines[known]}"

    def origin(self, path: KeyPath) -> str:
        """The place of a key with the name of its layer: ``preset 24gb (24gb.toml:14)``."""
        return self.label.replace("{}", self.where(path))


def read_layer(file: Path, source: str, label: str = "{}") -> Layer:
    """Read a TOML file as a layer; its relative paths are relative to its own folder.

    Raises:
        UsageError: the file cannot be read or is not TOML; ``where`` has the line.
    """
    text = read_text(file, source)
    try:
        values = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise syntax_error(text, source, str(error)) from error
    except (ValueError, RecursionError) as error:  # numbers without end, lists within lists without end
        raise UsageError(f"not valid TOML: {error}", where=source, hint="mend the file") from error
    return Layer(source, values, file.absolute().parent, key_lines(text), label)


def parse_value(text: str) -> Any:
    """A value as TOML writes it; words without quotes are text."""
    try:
        parsed = tomli.loads(f"value = {text}")
    except tomli.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def parse_key(text: str) -> list[str] | None:
    """The parts of a dotted key, or none if it is not one."""
    try:
        parsed: Any = tomli.loads(f"{text} = 0")
    except tomli.TOMLDecodeError:
        return None
    parts = []
    while isinstance(parsed, dict) and len(parsed) == 1:
        part, parsed = next(iter(parsed.items()))
        parts.append(part)
    return parts if parsed == 0 else None


def read_text(file: Path, source: str) -> str:
    """The text of a file of settings, with plain line ends, the last of them there.

    Raises:
        UsageError: it cannot be read, or is no UTF-8; ``where`` has the line.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"cannot read the file: {reason}", where=source, hint="check the path") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"byte 0x{content[error.start]:02x} is no UTF-8 text",
            where=f"{source}:{line}",
            hint="save the file as UTF-8",
        ) from error
    text = text.replace("\r\n", "\n")
    return text if text.endswith("\n") else f"{text}\n"


def syntax_error(text: str, source: str, message: str) -> UsageError:
    """What a TOML parser says of ``text``, in plain words and with its line."""
    reason, _, place = message.partition(" (at ")
    lines = text.split("\n")
    if number := re.search(r"line (\d+)", place):
        line = int(number[1])
        words = _PLAIN_WORDS.get(reason, reason[:1].lower() + reason[1:])
    else:
        line = len(text.rstrip().split("\n"))
        words = "the file ends inside a value: a quote or a bracket is never closed"
    return UsageError(
        f"not valid TOML: {words}", where=f"{source}:{line}", hint=f"mend this line: {lines[line - 1].strip()}"
    )
