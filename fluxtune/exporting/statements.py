"""What a person wants a LoRA file to say of itself: ``--metadata NAME=VALUE``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fluxtune.errors import DataError, UsageError
from fluxtune.lora.thumbnail import thumbnail_of

FIELDS = {
    "title": "modelspec.title",
    "author": "modelspec.author",
    "description": "modelspec.description",
    "license": "modelspec.license",
    "tags": "modelspec.tags",
    "trigger": "modelspec.trigger_phrase",
    "usage": "modelspec.usage_hint",
    "thumbnail": "modelspec.thumbnail",
}
"""Names that people give -> keys of ModelSpec 1.0.1."""


def stated(assignments: Sequence[str]) -> dict[str, str]:
    """Key of ModelSpec -> value. An empty value takes a field out; a thumbnail is given as a picture's path.

    Raises:
        UsageError: an assignment is none, of an unknown name, or names a picture that cannot be read.
    """
    values = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or name not in FIELDS:
            raise UsageError(
                f"{assignment!r:.80} is no field and its value",
                where="--metadata",
                hint=f"one of {', '.join(f'{field}=...' for field in FIELDS)}",
            )
        values[FIELDS[name]] = _thumbnail(value) if name == "thumbnail" and value else value
    return values


def _thumbnail(picture: str) -> str:
    if not Path(picture).is_file():
        raise UsageError("there is no such picture", where=picture, hint="--metadata thumbnail=picture.png")
    try:
        return thumbnail_of(Path(picture))
    except DataError as error:
        raise UsageError(error.message, where=picture, hint="name another picture") from error
