"""Pictures of a few kilobytes to megabytes that ask for far more memory or time than they are worth."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image

FRAMES = 100_000


def _encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _png_with(*chunks: bytes) -> bytes:
    """A small PNG with more chunks behind its header."""
    plain = _encoded("PNG")
    return plain[:33] + b"".join(chunks) + plain[33:]


def _zeros(count: int) -> bytes:
    return zlib.compress(bytes(count), 9)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header declares a size that its content does not have."""
    plain = bytearray(_encoded("PNG"))
    plain[16:24] = struct.pack(">II", width, height)
    plain[29:33] = struct.pack(">I", zlib.crc32(plain[12:29]))
    return bytes(plain)


def gif_of_size(width: int, height: int) -> bytes:
    """The screen and the picture on it."""
    plain = bytearray(_encoded("GIF"))
    plain[6:10] = struct.pack("<HH", width, height)
    place = plain.index(b"\x2c", 13)
    plain[place + 5 : place + 9] = struct.pack("<HH", width, height)
    return bytes(plain)


def bmp_of_size(width: int, height: int) -> bytes:
    plain = bytearray(_encoded("BMP"))
    plain[18:26] = struct.pack("<ii", width, height)
    return bytes(plain)


def webp_of_size(width: int, height: int) -> bytes:
    """The canvas of an extended WebP."""
    inner = _encoded("WEBP", lossless=True)[12:]
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + sides + inner
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff_of(tags: list[tuple[int, int, int, int]], following: int = 0) -> bytes:
    """A TIFF of these tags: number, type, count, value or place."""
    listed = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + listed + struct.pack("<I", following)


def tiff_of_size(width: int, height: int, **others: int) -> bytes:
    usual = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: width}
    return tiff_of([(number, 4, 1, min(value, 2**32 - 1)) for number, value in usual.items()])


def tiff_of_frames(count: int) -> bytes:
    """Each a picture of one pixel, described anew."""
    usual = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 1}
    listed = struct.pack("<H", len(usual)) + b"".join(struct.pack("<HHII", n, 4, 1, v) for n, v in usual.items())
    step = len(listed) + 4
    frames = (
        listed + struct.pack("<I", 8 + step * (number + 1) if number + 1 < count else 0) for number in range(count)
    )
    return b"II*\0" + struct.pack("<I", 8) + b"".join(frames)


def tiff_that_leads_to_itself() -> bytes:
    return tiff_of([(n, 4, 1, v) for n, v in {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 8, 279: 1}.items()], 8)


def gif_of_frames(count: int) -> bytes:
    """Each of one pixel."""
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6) + frame * count + b";"


BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG, declared": lambda: png_of_size(2**31 - 1, 2**31 - 1),
    "PNG, one long row": lambda: png_of_size(2**31 - 1, 1),
    "GIF, declared": lambda: gif_of_size(65535, 65535),
    "BMP, declared": lambda: bmp_of_size(2**31 - 1, 2**31 - 1),
    "BMP, upside down": lambda: bmp_of_size(2**30, -(2**31)),
    "WebP, declared": lambda: webp_of_size(2**24, 2**8),
    "TIFF, declared": lambda: tiff_of_size(2**32 - 1, 2**32 - 1),
    "TIFF, a tag of 4 thousand million values": lambda: tiff_of(
        [(n, 4, 1, v) for n, v in {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 279: 64}.items()] + [(273, 4, 2**32 - 1, 8)]
    ),
    "TIFF, many frames": lambda: tiff_of_frames(FRAMES),
    "TIFF, that leads to itself": tiff_that_leads_to_itself,
    "GIF, many frames": lambda: gif_of_frames(FRAMES),
    "PNG, zTXt": lambda: _png_with(_chunk(b"zTXt", b"a\0\0" + _zeros(2**31 - 1))),
    "PNG, a hundred zTXt": lambda: _png_with(*[_chunk(b"zTXt", b"a\0\0" + _zeros(1_000_000))] * 200),
    "PNG, iTXt": lambda: _png_with(_chunk(b"iTXt", b"a\0\1\0\0\0" + _zeros(2**30))),
    "PNG, colour profile": lambda: _png_with(_chunk(b"iCCP", b"a\0\0" + _zeros(2**30))),
    "PNG, EXIF that points everywhere": lambda: _png_with(
        _chunk(b"eXIf", tiff_of([(n, 5, 2**28, 8) for n in range(100, 4000)]))
    ),
    "JPEG, EXIF of huge counts": lambda: _encoded(
        "JPEG", exif=b"Exif\0\0" + tiff_of([(n, 12, 2**28, 8) for n in range(100, 2000)])
    ),
}
"""Kind -> its bytes."""
