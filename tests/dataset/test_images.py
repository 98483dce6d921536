"""The image loader: each kind of picture becomes the right pixels, or an error with the file and the mend."""

from __future__ import annotations

import itertools
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import ExifTags, Image, ImageCms
from zoo import TURNED

from fluxtune.dataset.images import MAX_PIXELS, crop_box, fit, open_image, read_image, to_pixels
from fluxtune.errors import DataError, ExitCode

WHITE = "#ffffff"
CORNERS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}

STORED = {1: None, **TURNED}


@pytest.fixture
def upright() -> Image.Image:
    """60 x 40, each corner of another colour."""
    picture = Image.new("RGB", (60, 40))
    for colour, place in zip(CORNERS.values(), [(0, 0), (30, 0), (0, 20), (30, 20)], strict=True):
        picture.paste(colour, (*place, place[0] + 30, place[1] + 20))
    return picture


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", STORED)
def test_each_exif_orientation_comes_out_upright(
    tmp_path: Path, upright: Image.Image, orientation: int, suffix: str
) -> None:
    turn = STORED[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"photo.{suffix}"
    stored.save(path, exif=exif, quality=95)

    picture = open_image(path, WHITE)

    assert picture.size == (60, 40)
    seen = [pixel_at(picture, *place) for place in [(8, 8), (52, 8), (8, 32), (52, 32)]]
    for pixel, colour in zip(seen, CORNERS.values(), strict=True):
        assert np.abs(np.subtract(pixel, colour)).max() < 12


def test_a_damaged_exif_block_counts_as_upright(tmp_path: Path, upright: Image.Image) -> None:
    path = tmp_path / "photo.jpg"
    upright.save(path, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xffgarbage", quality=95)
    assert open_image(path, WHITE).size == (60, 40)


def test_transparency_is_laid_on_the_background(tmp_path: Path) -> None:
    path = tmp_path / "glass.png"
    Image.new("RGBA", (4, 4), (255, 0, 0, 51)).save(path)
    assert pixel_at(open_image(path, "#0000ff"), 0, 0) == (51, 0, 204)


def test_a_transparent_palette_colour_is_laid_on_the_background(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    path = tmp_path / "palette.png"
    picture.save(path, transparency=0)
    loaded = open_image(path, "#00ff00")
    assert [pixel_at(loaded, x, 0) for x in (0, 1)] == [(0, 255, 0), (40, 50, 60)]


@pytest.mark.parametrize(("mode", "key", "kept"), [("L", 7, 200), ("RGB", (7, 7, 7), (200, 200, 200))])
def test_a_transparent_key_colour_is_laid_on_the_background(
    tmp_path: Path, mode: str, key: int | tuple[int, int, int], kept: int | tuple[int, int, int]
) -> None:
    picture = Image.new(mode, (2, 1), key)
    picture.putpixel((1, 0), kept)
    path = tmp_path / "key.png"
    picture.save(path, transparency=key)
    loaded = open_image(path, "#00ff00")
    assert [pixel_at(loaded, x, 0) for x in (0, 1)] == [(0, 255, 0), (200, 200, 200)]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P"])
def test_greys_and_palettes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "grey.png"
    Image.new("L", (4, 4), 255).convert(mode).save(path)
    picture = open_image(path, "#000000")
    assert (picture.mode, pixel_at(picture, 0, 0)) == ("RGB", (255, 255, 255))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_greys_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16)[None].repeat(4, axis=0)
    path = tmp_path / f"ramp.{suffix}"
    Image.fromarray(ramp).save(path)
    assert np.array_equal(np.asarray(open_image(path, WHITE))[0, :, 1], np.arange(256))


def test_sixteen_bit_colours_are_scaled_not_clipped(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    path.write_bytes(png(1, 1, depth=16, colour_type=2, row=struct.pack(">HHH", 0x8000, 0x4000, 0xFFFF)))
    assert pixel_at(open_image(path, WHITE), 0, 0) == (0x80, 0x40, 0xFF)


def test_a_float_picture_is_refused_because_its_range_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "depth.tif"
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(path)
    assert_refused(path, seen="32 bits a pixel", mend="8-bit")


def test_cmyk_becomes_the_rgb_that_was_printed(tmp_path: Path) -> None:
    path = tmp_path / "print.jpg"
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path, quality=95)
    red, green, blue = pixel_at(open_image(path, WHITE), 8, 8)
    assert red > 245 and green < 10 and blue < 10


def test_an_embedded_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.new("RGB", (4, 4), (200, 30, 30)).save(path, icc_profile=profile_with_red_and_green_swapped())
    red, green, blue = pixel_at(open_image(path, WHITE), 0, 0)
    assert abs(red - 30) <= 2 and abs(green - 200) <= 2 and abs(blue - 30) <= 2


def test_cmyk_goes_through_its_printing_profile(tmp_path: Path) -> None:
    path = tmp_path / "print.tif"
    Image.new("CMYK", (4, 4), (255, 0, 0, 0)).save(path, icc_profile=profile_of_a_press_with_grey_inks())
    red, green, blue = pixel_at(open_image(path, WHITE), 0, 0)
    assert max(red, green, blue) - min(red, green, blue) <= 2
    assert 200 < red < 220


def test_alpha_survives_the_conversion_of_a_profile(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.new("RGBA", (4, 4), (200, 30, 30, 0)).save(path, icc_profile=profile_with_red_and_green_swapped())
    assert pixel_at(open_image(path, "#123456"), 0, 0) == (0x12, 0x34, 0x56)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_profile_that_does_not_fit_is_left_aside(tmp_path: Path, mode: str) -> None:
    profile = b"no profile at all"
    if mode == "L":
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = tmp_path / "odd.png"
    Image.new(mode, (4, 4), "#646464").save(path, icc_profile=profile)
    assert pixel_at(open_image(path, WHITE), 0, 0) == (100, 100, 100)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_cut_off_file_is_refused(
    tmp_path: Path, photographs: dict[str, Image.Image], suffix: str, share: float
) -> None:
    path = tmp_path / f"cut.{suffix}"
    photographs["chelsea"].save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert_refused(path, mend="save it again")


def test_an_animation_is_refused(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    for suffix in ("gif", "png", "webp", "tif"):
        path = tmp_path / f"moving.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        assert_refused(path, seen="several frames", mend="save the frame")


def test_the_second_view_of_a_phone_picture_does_not_make_it_an_animation(tmp_path: Path, upright: Image.Image) -> None:
    path = tmp_path / "phone.jpg"
    upright.save(path, format="MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert open_image(path, WHITE).size == (60, 40)


@pytest.mark.parametrize("side", [14_000, 40_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    assert side * side > MAX_PIXELS
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side, depth=1, colour_type=0, row=bytes(side // 8)))
    assert_refused(path, seen="179 million pixels", mend="shrink")


@pytest.mark.parametrize("content", [b"PK\x03\x04 a zip archive", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"hello"])
def test_what_is_no_picture_is_refused_whatever_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    assert_refused(path, seen="no PNG, JPEG, WebP, BMP or TIFF", mend="save it again")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.jpg"
    path.touch()
    assert_refused(path, seen="empty (0 bytes)", mend="take it out")


def test_a_missing_file_is_refused_by_its_reason(tmp_path: Path) -> None:
    assert_refused(tmp_path / "gone.png", seen="no such file", mend="check the file")


def test_fit_covers_the_target_and_crops_the_centre() -> None:
    picture = Image.new("RGB", (300, 100), "red")
    picture.paste((0, 0, 255), (100, 0, 200, 100))
    fitted = fit(picture, 50, 50)
    assert fitted.size == (50, 50)
    assert {pixel_at(fitted, x, 25) for x in (3, 25, 46)} == {(0, 0, 255)}


@pytest.mark.parametrize(
    ("size", "box"),
    [((300, 100), (100, 0, 200, 100)), ((100, 300), (0, 100, 100, 200)), ((64, 64), (0, 0, 64, 64))],
)
def test_the_crop_box_is_central_and_as_large_as_can_be(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    assert crop_box(size, 32, 32) == pytest.approx(box)


def test_every_shape_has_a_crop_box_inside_the_picture() -> None:
    for width, height in [(1, 1), (3, 1000), (1023, 767), (6000, 4000), (4001, 3001)]:
        left, top, right, bottom = crop_box((width, height), 1184, 880)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height


def test_shrinking_averages_over_all_pixels() -> None:
    checks = Image.fromarray((np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    small = np.asarray(fit(checks, 32, 32)).astype(int)
    assert np.abs(small - 127).max() <= 2


def test_pixels_are_what_the_vae_takes(photographs: dict[str, Image.Image]) -> None:
    from diffusers.image_processor import VaeImageProcessor

    picture = fit(photographs["coffee"], 96, 64)
    pixels = to_pixels(picture)
    assert (pixels.shape, pixels.dtype, pixels.is_contiguous()) == ((3, 64, 96), torch.float32, True)
    assert torch.equal(pixels, VaeImageProcessor().preprocess(picture)[0])


def assert_refused(path: Path, *, seen: str = "", mend: str) -> None:
    with pytest.raises(DataError) as caught:
        open_image(path, WHITE)
    error = caught.value
    assert error.where == str(path)
    assert error.exit_code is ExitCode.DATA
    assert seen in error.message
    assert error.hint is not None and mend in error.hint


def pixel_at(picture: Image.Image, x: int, y: int) -> tuple[int, int, int]:
    red, green, blue = np.asarray(picture)[y, x].tolist()
    return red, green, blue


def png(width: int, height: int, *, depth: int, colour_type: int, row: bytes) -> bytes:
    """A PNG of equal rows, also of sizes and depths that Pillow does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    rows = zlib.compress((b"\x00" + row) * min(height, 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def profile_with_red_and_green_swapped() -> bytes:
    """The sRGB profile with its red and green primaries exchanged, so that converting cannot be overlooked."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack_from(">I", profile, 128)[0]
    places = {bytes(profile[132 + 12 * tag : 136 + 12 * tag]): 132 + 12 * tag for tag in range(count)}
    profile[places[b"rXYZ"] : places[b"rXYZ"] + 4] = b"gXYZ"
    profile[places[b"gXYZ"] : places[b"gXYZ"] + 4] = b"rXYZ"
    return bytes(profile)


def profile_of_a_press_with_grey_inks() -> bytes:
    """A CMYK profile (ICC.1:2010, lut8Type) in which cyan, magenta and yellow are light greys."""
    straight = bytes(range(256))
    grid = itertools.product((0, 1), repeat=4)
    colours = b"".join(bytes([0 if k else 255 - 40 * (c + m + y), 128, 128]) for c, m, y, k in grid)
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + straight * 4 + colours + straight * 3
    white = struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)
    content = table + b"XYZ " + bytes(4) + white
    tags = struct.pack(">I4sII4sII", 2, b"A2B0", 156, len(table), b"wtpt", 156 + len(table), 20)
    header = struct.pack(">I4sI4s4s4s", 156 + len(content), b"test", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    return header + bytes(12) + b"acsp" + bytes(28) + white + bytes(48) + tags + content


def test_where_brightness_alone_is_wanted_a_jpeg_is_read_grey_and_is_still_told_to_be_in_colour(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(skimage.data.coffee()).save(path, quality=90)
    grey, stored = read_image(path, "#ffffff", brightness=True)
    colour, stored_in_full = read_image(path, "#ffffff")
    assert (grey.mode, colour.mode) == ("L", "RGB")
    assert stored == stored_in_full
    assert stored.colours == "RGB"
    difference = np.abs(np.asarray(grey, dtype=int) - np.asarray(colour.convert("L"), dtype=int))
    assert difference.mean() < 1


def test_a_jpeg_that_is_cut_off_is_damaged_when_it_is_read_grey_too(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(skimage.data.coffee()).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match="damaged or cut off"):
        read_image(path, "#ffffff", brightness=True)
