"""A small picture in a terminal: as real pixels where it has a protocol for them, else as coloured half blocks."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from PIL import Image

from fluxtune.dataset.images import open_image
from fluxtune.errors import DataError

PIXELS = 320
"""Longest side of a picture that is sent as pixels."""
COLUMNS = 40
"""Widest picture of half blocks, in characters; each shows two pixels above each other."""
ROWS = 16

_CHUNK = 4096
"""Bytes of base64 that kitty takes in one sequence."""


def show_picture(path: Path, stream: TextIO) -> None:
    """Shows the picture where the terminal can; a picture that cannot be read, or a plain terminal, shows nothing."""
    try:
        picture = open_image(path, "#ffffff")
    except DataError:
        return
    terminal = os.environ.get("TERM_PROGRAM", "")
    if os.environ.get("KITTY_WINDOW_ID") or os.environ.get("TERM") == "xterm-kitty" or terminal == "ghostty":
        stream.write("".join(_kitty(_png(picture))) + "\n")
    elif terminal in ("iTerm.app", "WezTerm"):
        encoded = base64.b64encode(_png(picture)).decode()
        stream.write(f"\x1b]1337;File=inline=1;preserveAspectRatio=1:{encoded}\a\n")
    elif os.environ.get("COLORTERM") in ("truecolor", "24bit") and not os.environ.get("NO_COLOR"):
        stream.write("".join(f"  {line}\n" for line in half_blocks(picture)))
    stream.flush()


def half_blocks(picture: Image.Image) -> Iterator[str]:
    """Lines of the picture: each character is two pixels, the upper in its colour, the lower in its background's."""
    scale = min(COLUMNS / picture.width, 2 * ROWS / picture.height)
    size = max(1, round(picture.width * scale)), max(2, 2 * round(picture.height * scale / 2))
    pixels = picture.resize(size, Image.Resampling.BOX).load()
    assert pixels is not None
    for row in range(0, size[1], 2):
        cells = ((pixels[column, row], pixels[column, row + 1]) for column in range(size[0]))
        yield "".join(f"\x1b[38;2;{_rgb(upper)};48;2;{_rgb(lower)}m▀" for upper, lower in cells) + "\x1b[0m"


def _rgb(colour: object) -> str:
    return ";".join(map(str, colour))  # type: ignore[call-overload]


def _png(picture: Image.Image) -> bytes:
    small = picture.copy()
    small.thumbnail((PIXELS, PIXELS))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return buffer.getvalue()


def _kitty(png: bytes) -> Iterator[str]:
    """The sequences of kitty's graphics protocol (sw.kovidgoyal.net/kitty/graphics-protocol): PNG, shown at once."""
    encoded = base64.b64encode(png).decode()
    chunks = [encoded[start : start + _CHUNK] for start in range(0, len(encoded), _CHUNK)]
    for index, chunk in enumerate(chunks):
        control = "a=T,f=100," if index == 0 else ""
        more = 0 if index == len(chunks) - 1 else 1
        yield f"\x1b_G{control}m={more};{chunk}\x1b\\"
