"""Picture files that say how they were made: PNG in its text, JPEG and WebP in their EXIF."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from fluxtune import files
from fluxtune.errors import DataError, UsageError

SCHEMA = 1
ENDINGS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
_UNICODE = b"UNICODE\0"
"""How a user comment begins whose text is UTF-16 (EXIF 2.32, 4.6.5), as user interfaces read ``parameters``."""
_MOST_EXIF = 65_000
"""Bytes: a JPEG's EXIF has one segment, of 64 KiB."""

_DAMAGED = (OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error, RecursionError)
"""What Pillow and json raise over damaged and hostile files."""


@dataclass(frozen=True)
class Told:
    """What a file says: ``facts`` for programs, and ``parameters`` in the form that user interfaces show."""

    facts: dict[str, Any]
    parameters: str


def save(path: Path, picture: Image.Image, told: Told, quality: int) -> None:
    """Write a picture in the format that its path ends in, with what is told of it.

    Args:
        quality: of JPEG and WebP, from 1 to 100.

    Raises:
        StorageError: it cannot be written.
    """
    if path.suffix == ENDINGS["png"]:
        options: dict[str, Any] = {"format": "PNG", "pnginfo": _png_text(told)}
    elif path.suffix == ENDINGS["jpeg"]:
        options = {"format": "JPEG", "quality": quality, "subsampling": 0, "exif": _exif(told)}
    else:
        options = {"format": "WEBP", "quality": quality, "method": 4, "exif": _exif(told)}
    files.write_with(path, lambda temporary: picture.save(temporary, **options))


def require_room(told: Told, format: str) -> None:
    """Refuse what a format cannot hold, before the picture is made.

    Raises:
        UsageError: a JPEG's EXIF is too small for it.
    """
    if format == "jpeg" and len(_exif(told)) > _MOST_EXIF:
        raise UsageError(
            "how this picture is made does not fit into a JPEG: its prompt is too long",
            where="--format",
            hint="write PNG or WebP: --format png",
        )


def facts_in(path: Path) -> dict[str, Any]:
    """What ``save`` told of a picture, or of all pictures of a grid.

    Raises:
        DataError: the file is no picture, or does not say how it was made.
    """
    try:
        if path.exists() and not path.is_file():  # to open a pipe is to wait for who writes into it
            raise OSError(0, "it is no file")
        with Image.open(path, formats=["PNG", "JPEG", "WEBP"]) as picture:
            if picture.format == "PNG":
                picture.load()  # what stands behind the pixels, too
                text = getattr(picture, "text", {}).get("fluxtune", "")
            else:
                text = picture.getexif().get(ExifTags.Base.ImageDescription, "")
        facts = json.loads(text) if text else None
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "it is no PNG, JPEG or WebP picture, or it is damaged"
        raise DataError(f"cannot read the picture: {reason}", where=str(path), hint="check the path") from error
    if not isinstance(facts, dict) or "schema" not in facts:
        raise DataError(
            "this picture does not say how it was made",
            where=str(path),
            hint="give one as `fluxtune sample` wrote it; many programs and sites leave out what pictures say",
        )
    return facts


def _png_text(told: Told) -> PngInfo:
    info = PngInfo()
    info.add_text("fluxtune", json.dumps(told.facts))
    if told.parameters:
        info.add_text("parameters", told.parameters)
    return info


def _exif(told: Told) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = json.dumps(told.facts)
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.UserComment: _UNICODE + told.parameters.encode("utf-16-be")}
    return exif.tobytes()
