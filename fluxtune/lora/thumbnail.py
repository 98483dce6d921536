"""A small picture inside a LoRA file's header, as ModelSpec 1.0.1 has it: a JPEG of 256 px in a ``data:`` URL."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO
from pathlib import Path

from PIL import Image

from fluxtune.dataset.images import open_image

SIDE = 256
"""Pixels of its longer side, as the specification suggests."""
MOST_BYTES = 48 * 1024
"""Of the JPEG. Programs read a header whole."""
_QUALITIES = (85, 70, 50, 30)


def thumbnail_of(picture: Path) -> str:
    """The ``data:image/jpeg`` URL of a picture. Nothing but its pixels goes in: no prompt, no EXIF, no comment.

    Raises:
        DataError: the picture cannot be read.
    """
    image = open_image(picture, "#ffffff")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    pixels = Image.frombytes("RGB", image.size, image.tobytes())
    for quality in _QUALITIES:
        encoded = BytesIO()
        pixels.save(encoded, format="JPEG", quality=quality, optimize=True)
        if encoded.tell() <= MOST_BYTES:
            break
    return f"data:image/jpeg;base64,{b64encode(encoded.getvalue()).decode()}"
