"""A zoo of bad inputs, made by code: each animal is a folder's files and the findings that `validate` owes for it."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import skimage.data
from PIL import ExifTags, Image, ImageCms, ImageFilter

Animal = Callable[[Path], None]

TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation -> how a camera stores an upright picture."""


def photograph() -> Image.Image:
    """A real one, sharp, in colour."""
    return Image.fromarray(skimage.data.coffee())


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    """The picture as bytes of a file format."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def save(name: str, kind: str = "", **options: object) -> Animal:
    """The photograph in a format."""
    return lambda folder: photograph().save(folder / name, kind or None, **options)


def write(name: str, content: bytes | Callable[[], bytes]) -> Animal:
    """A file of these bytes."""
    return lambda folder: (folder / name).write_bytes(content() if callable(content) else content) and None  # type: ignore[func-returns-value]


def cut(kind: str, share: float) -> Callable[[], bytes]:
    """The first part of a file."""

    def content() -> bytes:
        whole = encoded(photograph(), kind)
        return whole[: int(len(whole) * share)]

    return content


def flipped_bytes(kind: str, first: float) -> Callable[[], bytes]:
    """A file whose middle was overwritten."""

    def content() -> bytes:
        whole = bytearray(encoded(photograph(), kind))
        start = int(len(whole) * first)
        whole[start : start + 400] = bytes(255 - value for value in whole[start : start + 400])
        return bytes(whole)

    return content


def png(width: int, height: int, pixels: bytes, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG of any claim."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def zip_archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("photo.png", b"not here")
    return buffer.getvalue()


def animation(name: str, kind: str) -> Animal:
    frames = [photograph().resize((64, 48)).rotate(angle) for angle in (0, 90)]
    return lambda folder: frames[0].save(folder / name, kind, save_all=True, append_images=frames[1:])


def oriented(orientation: int) -> Animal:
    def make(folder: Path) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        photograph().transpose(TURNED[orientation]).save(folder / "a.jpg", exif=exif)

    return make


def oriented_tiff(folder: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    photograph().transpose(TURNED[6]).save(folder / "a.tif", exif=exif)


def sixteen_bits(name: str) -> Animal:
    """16-bit grey."""

    def make(folder: Path) -> None:
        values = np.asarray(photograph().convert("L"), dtype=np.uint16) * 257
        Image.fromarray(values).save(folder / name)

    return make


def sixteen_bit_colours(folder: Path) -> None:
    values = np.asarray(photograph(), dtype=">u2") * 257
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    (folder / "a.png").write_bytes(png(values.shape[1], values.shape[0], zlib.compress(rows), depth=16, colour=2))


def transparent_palette(folder: Path) -> None:
    picture = photograph().quantize(64)
    picture.save(folder / "a.png", transparency=picture.getpixel((0, 0)))


def half_transparent(folder: Path) -> None:
    picture = photograph()
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    picture.save(folder / "a.png")


def wide_gamut(folder: Path) -> None:
    """sRGB's profile with its red primary moved outwards."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", profile[128:132])[0]
    for index in range(count):
        tag, offset, _ = struct.unpack(">4sII", profile[132 + 12 * index : 144 + 12 * index])
        if tag == b"gXYZ":
            profile[offset + 8 : offset + 20] = struct.pack(">iii", *(round(v * 65536) for v in (0.2, 0.7, 0.02)))
    photograph().save(folder / "a.jpg", icc_profile=bytes(profile))


def letterboxed(folder: Path) -> None:
    picture = photograph()
    framed = Image.new("RGB", (picture.width, picture.height + 120), "black")
    framed.paste(picture, (0, 60))
    framed.save(folder / "a.jpg", quality=90)


def blurred(folder: Path) -> None:
    photograph().filter(ImageFilter.GaussianBlur(3)).save(folder / "a.png")


def near_twins(folder: Path) -> None:
    picture = photograph()
    picture.save(folder / "a.png")
    picture.resize((300, 200)).save(folder / "b.jpg", quality=40)


def twins(folder: Path) -> None:
    for name in ("a.png", "b.png"):
        photograph().save(folder / name)


def with_caption(content: bytes, *names: str) -> Animal:
    def make(folder: Path) -> None:
        photograph().save(folder / "a.png")
        for name in names or ("a.txt",):
            (folder / name).write_bytes(content)

    return make


def called(stem: str) -> Animal:
    """A picture and a caption of that name."""

    def make(folder: Path) -> None:
        photograph().save(folder / f"{stem}.png")
        (folder / f"{stem}.txt").write_text("a cup", encoding="utf-8")

    return make


LONG_CAPTION = ("a cup of coffee on a wooden table, " * 20).encode()
VERY_LONG_CAPTION = LONG_CAPTION * 5

ZOO: dict[str, tuple[Animal, set[str]]] = {
    "JPEG cut in its header": (write("a.jpg", cut("JPEG", 0.002)), {"damaged", "not-a-picture"}),
    "JPEG cut in the middle": (write("a.jpg", cut("JPEG", 0.5)), {"damaged"}),
    "JPEG cut near its end": (write("a.jpg", cut("JPEG", 0.98)), {"damaged"}),
    "PNG cut in the middle": (write("a.png", cut("PNG", 0.5)), {"damaged"}),
    "PNG without its last chunk": (write("a.png", cut("PNG", 0.99999)), set()),
    "WebP cut in the middle": (write("a.webp", cut("WEBP", 0.5)), {"damaged"}),
    "TIFF cut in the middle": (write("a.tif", cut("TIFF", 0.5)), {"damaged", "not-a-picture"}),
    "BMP cut in the middle": (write("a.bmp", cut("BMP", 0.5)), {"damaged"}),
    "PNG overwritten in the middle": (write("a.png", flipped_bytes("PNG", 0.5)), {"damaged"}),
    "no bytes": (write("a.png", b""), {"empty-file"}),
    "zero-sized PNG": (write("a.png", png(0, 0, zlib.compress(b""))), {"damaged", "not-a-picture"}),
    "PNG bomb by its header": (write("a.png", png(60_000, 60_000, b"")), {"too-large"}),
    "PNG bomb of nothing but zeros": (
        write("a.png", lambda: png(20_000, 20_000, zlib.compress(bytes(20_001 * 2_000)) * 1)),
        {"too-large"},
    ),
    "zip called PNG": (write("a.png", zip_archive), {"not-a-picture"}),
    "text called JPEG": (write("a.jpg", b"this is a caption"), {"not-a-picture"}),
    "page called PNG": (write("a.png", b"<!DOCTYPE html><html></html>"), {"not-a-picture"}),
    "PostScript called PNG": (write("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), {"not-a-picture"}),
    "JPEG called PNG": (save("a.png", "JPEG"), {"wrong-extension"}),
    "PNG called JPEG": (save("a.jpg", "PNG"), {"wrong-extension"}),
    "GIF called PNG": (save("a.png", "GIF"), {"wrong-extension"}),
    "animated GIF called PNG": (animation("a.png", "GIF"), {"animated"}),
    "animated PNG": (animation("a.png", "PNG"), {"animated"}),
    "animated WebP": (animation("a.webp", "WEBP"), {"animated"}),
    "HEIC": (write("a.heic", b"\0\0\0\x18ftypheic"), {"unread-kind", "no-pictures"}),
    "CMYK": (lambda folder: photograph().convert("CMYK").save(folder / "a.jpg"), {"cmyk"}),
    "16-bit grey PNG": (sixteen_bits("a.png"), {"sixteen-bit"}),
    "16-bit grey TIFF": (sixteen_bits("a.tif"), {"sixteen-bit"}),
    "16-bit colour PNG": (sixteen_bit_colours, {"sixteen-bit"}),
    "32-bit float TIFF": (
        lambda folder: Image.fromarray(np.ones((64, 64), np.float32)).save(folder / "a.tif"),
        {"unknown-range"},
    ),
    "palette with transparency": (transparent_palette, {"transparent"}),
    "half transparent": (half_transparent, {"transparent"}),
    "wide gamut": (wide_gamut, {"wide-gamut"}),
    **{f"EXIF orientation {number}": (oriented(number), {"turned"}) for number in TURNED},
    "turned TIFF": (oriented_tiff, {"turned"}),
    "letterbox": (letterboxed, {"borders"}),
    "blurred": (blurred, {"blurred"}),
    "one colour": (lambda folder: Image.new("RGB", (512, 512), "teal").save(folder / "a.png"), {"blank"}),
    "one picture twice": (twins, {"duplicate"}),
    "one picture twice, once small": (near_twins, {"near-duplicate"}),
    "two captions": (with_caption(b"a cup", "a.txt", "a.caption"), {"two-captions"}),
    "caption in UTF-16": (with_caption("a cup".encode("utf-16")), {"bad-caption"}),
    "caption in UTF-16 without its mark": (with_caption("a cup".encode("utf-16-le")), {"bad-caption"}),
    "caption with a byte order mark": (with_caption("a cup".encode("utf-8-sig")), set()),
    "caption with NUL": (with_caption(b"a\0cup"), {"bad-caption"}),
    "caption in Latin-1": (with_caption("un café".encode("latin-1")), {"bad-caption"}),
    "caption with rich markup": (with_caption(b"[red]a cup[/red] [link=https://example.org]"), set()),
    "caption of spaces": (with_caption(b" \n\t "), {"empty-caption"}),
    "no caption": (save("a.png"), {"missing-caption"}),
    "long caption": (with_caption(LONG_CAPTION), {"long-for-clip"}),
    "very long caption": (with_caption(VERY_LONG_CAPTION), {"long-for-clip", "long-for-t5"}),
    "caption without a picture": (with_caption(b"a cup", "a.txt", "b.txt"), {"stray-caption"}),
    "emoji in the name": (called("☕🙂 cup"), set()),
    "right-to-left name": (called("كوب قهوة"), set()),
    "name of 250 characters": (called("x" * 246), set()),
    "name like rich markup": (called("[red]cup[bold]"), set()),
    "nothing at all": (lambda folder: None, {"no-pictures"}),
}
"""What the animal is -> how it is made, and the checks that must find something; a set of two: either will do where
what comes first depends on how far the decoder gets."""
