from __future__ import annotations

from base64 import b64decode
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fluxtune.errors import DataError
from fluxtune.lora.thumbnail import MOST_BYTES, thumbnail_of


def decoded(url: str) -> tuple[Image.Image, bytes]:
    kind, _, text = url.partition(",")
    assert kind == "data:image/jpeg;base64"
    content = b64decode(text, validate=True)
    return Image.open(BytesIO(content)), content


def test_a_thumbnail_is_the_picture_at_256_pixels(tmp_path: Path) -> None:
    Image.new("RGB", (1024, 512), "#c04020").save(tmp_path / "wide.png")
    picture, _ = decoded(thumbnail_of(tmp_path / "wide.png"))
    assert picture.size == (256, 128)
    assert np.abs(np.asarray(picture).astype(int) - (0xC0, 0x40, 0x20)).max() <= 3


def test_a_small_picture_is_not_enlarged(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "small.png")
    assert decoded(thumbnail_of(tmp_path / "small.png"))[0].size == (64, 48)


def test_even_noise_is_bounded(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    _, content = decoded(thumbnail_of(tmp_path / "noise.png"))
    assert 10_000 < len(content) <= MOST_BYTES


def test_nothing_but_pixels_goes_in(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("parameters", "a secret prompt")
    Image.new("RGB", (300, 300)).save(tmp_path / "sample.png", pnginfo=info)
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    Image.new("RGB", (300, 300)).save(tmp_path / "photo.jpg", exif=exif, comment=b"a secret comment")
    for name in ("sample.png", "photo.jpg"):
        picture, content = decoded(thumbnail_of(tmp_path / name))
        assert b"secret" not in content
        assert not picture.getexif()


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DataError):
        thumbnail_of(tmp_path / "text.png")
