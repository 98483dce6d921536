"""Reading a layer of settings from a TOML file, with the line of each key."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

import tomli

from fluxtune.config.positions import KeyPath, key_lines
from fluxtune.config.syntax import shortened, syntax_error
from fluxtune.errors import UsageError

_LARGEST = 2**20
"""Bytes. Much more than any settings take; to look for the lines of the keys in a megabyte takes seconds."""


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
        return Layer(source, tomli.loads(text), file.absolute().parent, key_lines(text), label)
    except (ValueError, RecursionError) as error:
        raise syntax_error(text, source, error) from error


def parse_value(text: str) -> Any:
    """A value as TOML writes it; words without quotes are text."""
    try:
        parsed = tomli.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text


def parse_key(text: str) -> list[str] | None:
    """The parts of a dotted key, or none if it is not one."""
    if "\n" in text:
        return None
    try:
        parsed: Any = tomli.loads(f"{text} = 0")
    except (ValueError, RecursionError):
        return None
    parts = []
    while isinstance(parsed, dict) and len(parsed) == 1:
        part, parsed = next(iter(parsed.items()))
        parts.append(part)
    return parts if parsed == 0 else None


def read_text(file: Path, source: str, from_pipes: bool = False) -> str:
    """The text of a file of settings, with plain line ends, the last of them there.

    Args:
        from_pipes: a pipe or a device is read, too, as far as a file may be long.

    Raises:
        UsageError: it cannot be read, is too large, or is no UTF-8; ``where`` has the line.
    """
    content = _read_bytes(file, source, from_pipes)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = content.rfind(b"\n", 0, error.start) + 1
        number = content.count(b"\n", 0, error.start) + 1
        before = shortened(content[start : error.start].decode("utf-8-sig").strip(), from_end=True)
        raise UsageError(
            f"byte 0x{content[error.start]:02x} is no UTF-8 text",
            where=f"{source}:{number}",
            hint="save the file as UTF-8" + (f"; the byte comes after: {before}" if before else ""),
        ) from error
    text = text.replace("\r\n", "\n")
    return text if text.endswith("\n") else f"{text}\n"


def _read_bytes(file: Path, source: str, from_pipes: bool) -> bytes:
    try:
        about = file.stat()
        # To open a pipe is to wait for who writes into it, and a device may have no end.
        if not from_pipes and not S_ISREG(about.st_mode) and not S_ISDIR(about.st_mode):
            raise UsageError("this is no file, but a pipe or a device", where=source, hint="give a file with settings")
        with file.open("rb") as opened:
            content = opened.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            size = f"{about.st_size / 2**20:.1f} MiB" if S_ISREG(about.st_mode) else "without end"
            raise UsageError(
                f"this is too large for settings: {size}, wanted at most {_LARGEST // 2**20} MiB",
                where=source,
                hint="check the path; captions go beside the pictures or into a metadata.jsonl",
            )
        return content
    except (OSError, ValueError) as error:  # a ValueError of a path with a zero byte in it
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise UsageError(f"cannot read the file: {reason}", where=source, hint="check the path") from error
