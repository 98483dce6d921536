"""The one image loader: a picture file becomes upright RGB pixels, or an error that says how to mend it.

Everything that reads a picture goes through here, so that rotation, transparency, colour spaces and bit
depths mean the same thing in validation, caching and captioning.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageCms

from fluxtune import rng
from fluxtune.dataset.colours import Colours, colours_of, recoloured
from fluxtune.errors import DataError

if TYPE_CHECKING:
    import torch

Size: TypeAlias = tuple[int, int]
"""(width, height) in pixels."""

MAX_PIXELS = 178_956_970
"""The largest picture that is decoded (about 13,377 x 13,377); more is taken for a decompression bomb."""

# Only these decoders run, whatever a file's name says: some of Pillow's others start programs (EPS) or read
# far files.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")

# What Pillow's decoders raise on damaged files: its plugins let the errors of their parsers through.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the transposition that turns the picture upright (EXIF 2.32, tag 0x0112)."""

_COLOURS = {"L": "grey", "LA": "grey", "1": "black and white", "P": "palette", "PA": "palette", "RGBA": "RGB"}
"""Pillow's modes in people's words, where they differ."""

_SRGB_AREA = 0.1091
"""Of the triangle of sRGB's primaries in CIE xy, adapted to D50 as profiles hold them."""
_WIDE = 1.15
"""Profiles that hold so many times more are worth a word: Display P3 has 1.36 times, Adobe RGB 1.35 times."""

# Pillow warns above half of MAX_PIXELS and about odd metadata; what matters is checked and said here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


@dataclass(frozen=True)
class Stored:
    """How a picture lies in its file, before ``read_image`` made it what training sees.

    Attributes:
        format: PNG, JPEG, WEBP, BMP, TIFF or MPO.
        colours: ``RGB``, ``grey``, ``CMYK``, ``palette``...
        bits: of one channel of one pixel.
        turn: EXIF orientation; 1 is upright.
        transparent: whether any pixel lets the background through.
        profile: the embedded colour profile's name where it holds more colours than sRGB, else None.
    """

    format: str
    colours: str
    bits: int
    turn: int
    transparent: bool
    profile: str | None


def open_image(path: Path, background: str) -> Image.Image:
    """The picture alone of what ``read_image`` gives."""
    return read_image(path, background)[0]


def read_image(path: Path, background: str, brightness: bool = False) -> tuple[Image.Image, Stored]:
    """Decode a picture completely into upright 8-bit sRGB, and say how it was stored.

    As ``read_with_alpha``, with transparency laid on ``background``, ``#rrggbb``.
    """
    picture, stored = read_with_alpha(path, brightness)
    return _on_background(picture, background), stored


def read_with_alpha(path: Path, brightness: bool = False) -> tuple[Image.Image, Stored]:
    """Decode a picture completely into upright 8-bit sRGB, RGBA where it is transparent, and say how it was stored.

    EXIF orientation is applied; an embedded colour profile is converted to sRGB where it fits the pixels;
    16-bit greys are scaled, not clipped; greyscale and CMYK become RGB.

    Args:
        path: a PNG, JPEG, WebP, BMP or TIFF file (told by its content, not its name).
        brightness: it alone is wanted, so the picture of a JPEG may be grey, which is read in half the time.

    Raises:
        DataError: unreadable, not a picture, damaged or cut off, animated, more than ``MAX_PIXELS``, or of a
        bit depth whose range is unknown; its ``check`` says which.
    """
    with _opened(path) as image:
        bits = _bits(image)
        # Pillow turns TIFFs by itself when it loads them, and forgets; of a PNG it knows only then.
        turn = _orientation(image) if image.format == "TIFF" else 1
        grey = brightness and (image.format, image.mode) == ("JPEG", "RGB") and "icc_profile" not in image.info
        if grey:
            image.draft("L", image.size)
        image.load()
        turn = turn if image.format == "TIFF" else _orientation(image)
    turned = turn in _UPRIGHT and image.format != "TIFF"
    upright = image.transpose(_UPRIGHT[turn]) if turned else image
    coloured = upright if grey else _in_srgb(_in_eight_bits(upright, path))
    transparent = coloured.mode == "RGBA" and coloured.getchannel("A").getextrema() != (255, 255)
    stored = Stored(
        format=image.format or "",
        colours="RGB" if grey else _COLOURS.get(image.mode, image.mode),
        bits=bits,
        turn=turn if turn in _UPRIGHT else 1,
        transparent=transparent,
        profile=_wide_profile(image.info.get("icc_profile")),
    )
    return coloured if grey or transparent or coloured.mode == "RGB" else coloured.convert("RGB"), stored


def read_mask(path: Path, picture: Path) -> Image.Image:
    """The mask in a file as upright 8-bit grey, white where it counts; a picture's own transparency if it is one file.

    Raises:
        DataError: see ``read_with_alpha``.
    """
    image, _ = read_with_alpha(path)
    if path != picture:
        return _on_background(image, "#000000").convert("L")
    return image.getchannel("A") if image.mode == "RGBA" else Image.new("L", image.size, 255)


@dataclass(frozen=True)
class Crop:
    """Which part of a picture is taken, of all that have the wanted shape, and how it is changed.

    Attributes:
        zoom: its sides as a share of the largest one's, above 0 and at most 1.
        across, down: where it lies in what is left over, from 0 (left, top) to 1.
        mirrored: left and right change places, once it is cut.
        colours: how they are changed, if they are.
    """

    zoom: float = 1.0
    across: float = 0.5
    down: float = 0.5
    mirrored: bool = False
    colours: Colours | None = None

    @property
    def place(self) -> tuple[float, float, float, bool]:
        """What decides where each pixel comes from, for cache keys."""
        return self.zoom, self.across, self.down, self.mirrored


CENTRE = Crop()


def crops_of(digest: str, number: int, jitter: float, flip: bool = False, colour_jitter: float = 0.0) -> list[Crop]:
    """The central crop, then ``number - 1`` that leave out up to ``jitter`` of each side, their colours changed by up
    to ``colour_jitter``; the picture's digest alone decides about them. With ``flip`` all of them follow mirrored."""
    jittered = [
        Crop(
            1.0 - jitter * rng.uniform(0, "zoom", digest, index),
            rng.uniform(0, "across", digest, index),
            rng.uniform(0, "down", digest, index),
            colours=colours_of(digest, index, colour_jitter) if colour_jitter else None,
        )
        for index in range(1, number)
    ]
    crops = [CENTRE, *jittered]
    return crops + [replace(crop, mirrored=True) for crop in crops] if flip else crops


def crop_box(size: Size, width: int, height: int, crop: Crop = CENTRE) -> tuple[float, float, float, float]:
    """The part of a picture of ``size`` that has the shape ``width`` x ``height`` and lies as ``crop`` says.

    Returns:
        (left, top, right, bottom) in pixels of the picture, fractions included.
    """
    scale = max(width / size[0], height / size[1])
    used_width, used_height = (
        crop.zoom * min(side / scale, full) for side, full in zip((width, height), size, strict=True)
    )
    left, top = crop.across * (size[0] - used_width), crop.down * (size[1] - used_height)
    return left, top, left + used_width, top + used_height


def fit(image: Image.Image, width: int, height: int, crop: Crop = CENTRE) -> Image.Image:
    """Scale to cover ``width`` x ``height`` and crop, in one Lanczos pass, then change what ``crop`` says.

    When shrinking, the kernel grows with the scale, so that every source pixel counts and nothing aliases.
    """
    if image.size == (width, height) and crop == CENTRE:
        return image
    cut = image.resize((width, height), Image.Resampling.LANCZOS, box=crop_box(image.size, width, height, crop))
    cut = recoloured(cut, crop.colours) if crop.colours else cut
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.mirrored else cut


def to_pixels(image: Image.Image) -> torch.Tensor:
    """An RGB picture as float32 ``[3, height, width]`` in [-1, 1], as the VAE takes it."""
    import torch

    values = torch.from_numpy(np.array(image, dtype=np.float32))
    return values.permute(2, 0, 1).contiguous() / 255 * 2 - 1


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file as a still picture of bearable size, header read; a failure inside becomes a ``DataError``."""
    mend = "save it again as PNG or JPEG, or take it out of the folder"
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise DataError("the file is empty (0 bytes)", where=str(path), hint=mend, check="empty-file")
            file.seek(0)
            with Image.open(file, formats=_FORMATS) as image:
                _require_still(image, path)
                _require_bearable(image.size, path)
                yield image
    except Image.UnidentifiedImageError as error:
        message = "the content is no PNG, JPEG, WebP, BMP or TIFF picture"
        raise DataError(message, where=str(path), hint=mend, check="not-a-picture") from error
    except Image.DecompressionBombError as error:
        raise _too_large("a picture", path) from error
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:
            reason = (error.strerror or str(error)).lower()
            message, mend = f"the file cannot be read: {reason}", "check the file and its permissions"
            check = "unreadable"
        else:
            message, check = f"the picture is damaged or cut off: {error or type(error).__name__}", "damaged"
        raise DataError(message, where=str(path), hint=mend, check=check) from error


def _require_still(image: Image.Image, path: Path) -> None:
    # MPO is a phone's JPEG with a second, hidden view; its first frame is the photograph. The frames of others are not
    # counted: a million of them would take hours.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise DataError(
            "the picture has several frames, but a still one is wanted",
            where=str(path),
            hint="save the frame that you want as PNG or JPEG",
            check="animated",
        )


def _require_bearable(size: Size, path: Path) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise _too_large(f"{size[0]} x {size[1]} pixels", path)


def _too_large(seen: str, path: Path) -> DataError:
    return DataError(
        f"{seen} of more than {MAX_PIXELS / 1e6:.0f} million pixels is not decoded",
        where=str(path),
        hint="shrink the picture; training needs at most a few million pixels",
        check="too-large",
    )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation (1-8); a damaged EXIF block counts as upright, as in every viewer."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _DAMAGED:
        return 1


def _bits(image: Image.Image) -> int:
    """Bits of a channel as stored, as far as the decoder's plan or the TIFF's tags tell; to be asked before loading."""
    if image.mode == "1":
        return 1
    if image.mode in ("I", "F"):
        return 32 if image.format != "PNG" else 16
    if image.format == "TIFF":
        depths = image.tag_v2.get(258, (8,))  # type: ignore[attr-defined]
        return int(max(depths)) if isinstance(depths, tuple) else int(depths)
    wanted = [tile[3] for tile in getattr(image, "tile", [])]
    return 16 if ";16" in image.mode or any(";16" in str(mode) for mode in wanted) else 8


def _in_eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """16-bit greys scaled to 8 bits; other modes as they are. (Pillow scales 16-bit colours itself.)"""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise DataError(
            "a greyscale picture of 32 bits a pixel has no known range",
            where=str(path),
            hint="save it as an 8-bit or 16-bit picture",
            check="unknown-range",
        )
    scaled = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    if profile := image.info.get("icc_profile"):
        scaled.info["icc_profile"] = profile
    return scaled


def _in_srgb(image: Image.Image) -> Image.Image:
    """RGB or RGBA, converted through the embedded colour profile where there is one that fits the pixels."""
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    profile = image.info.get("icc_profile")
    if image.mode in ("P", "PA", "LA", "La", "RGBA", "RGBa", "1"):
        image = image.convert("L" if image.mode in ("LA", "La", "1") else "RGB")
    colours = _through_profile(image, profile) if profile else None
    # A conversion copies the picture, even to the mode that it has.
    colours = colours or (image if image.mode == "RGB" and alpha is None else image.convert("RGB"))
    if alpha is not None:
        colours.putalpha(alpha)
    return colours


def _through_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """The picture in sRGB, or None where the profile is damaged or made for other channels (it happens)."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, *_DAMAGED):
        return None


def _wide_profile(profile: bytes | None) -> str | None:
    """The profile's name if the triangle of its primaries is clearly larger than that of sRGB (in CIE xy)."""
    if not profile:
        return None
    try:
        held = ImageCms.ImageCmsProfile(BytesIO(profile)).profile
        primaries = (held.red_primary, held.green_primary, held.blue_primary)
        (x1, y1), (x2, y2), (x3, y3) = (primary[1][:2] for primary in primaries if primary is not None)
        name = (held.profile_description or "").strip()
    except (ImageCms.PyCMSError, TypeError, *_DAMAGED):
        return None
    area = abs((x2 - x1) * (y3 - y1) - (x3 - x1) * (y2 - y1)) / 2
    return (name or "unnamed") if area > _WIDE * _SRGB_AREA else None


def _on_background(image: Image.Image, background: str) -> Image.Image:
    if image.mode != "RGBA":
        return image
    ground = Image.new("RGBA", image.size, background)
    return Image.alpha_composite(ground, image).convert("RGB")
