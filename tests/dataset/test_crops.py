"""Further crops of a picture: moved and zoomed by chance, the same for every run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fluxtune.dataset.images import CENTRE, Crop, crop_box, crops_of, fit


def test_the_first_crop_is_the_central_one_and_the_others_differ() -> None:
    crops = crops_of("digest", 8, 0.2)
    assert crops[0] == CENTRE
    assert len(set(crops)) == 8


def test_crops_depend_on_the_picture_alone_and_more_of_them_keep_the_first() -> None:
    assert crops_of("digest", 8, 0.2)[:4] == crops_of("digest", 4, 0.2)
    assert crops_of("digest", 8, 0.2) != crops_of("another", 8, 0.2)


@pytest.mark.parametrize("size", [(640, 480), (300, 900), (512, 512)])
def test_a_crop_lies_inside_the_picture_and_leaves_out_no_more_than_asked(
    size: tuple[int, int],
) -> None:
    whole = crop_box(size, 256, 192)
    for crop in crops_of("digest", 50, 0.2):
        left, top, right, bottom = crop_box(size, 256, 192, crop)
        assert 0 <= left < right <= size[0] + 1e-9
        assert 0 <= top < bottom <= size[1] + 1e-9
        assert (right - left) / (bottom - top) == pytest.approx(256 / 192)
        assert 0.8 <= (right - left) / (whole[2] - whole[0]) <= 1


def test_what_a_crop_shows_is_that_part_of_the_picture() -> None:
    picture = Image.new("RGB", (200, 200), "red")
    picture.paste("blue", (100, 0, 200, 200))
    right_half = np.asarray(fit(picture, 64, 64, Crop(zoom=0.5, across=1.0, down=0.0)))
    # The kernel reaches a little over the edge of the crop.
    assert np.array_equal(np.unique(right_half[:, 3:].reshape(-1, 3), axis=0), [[0, 0, 255]])


def test_with_flip_each_crop_comes_mirrored_too() -> None:
    crops = crops_of("digest", 3, 0.2, flip=True)
    assert crops[:3] == crops_of("digest", 3, 0.2)
    assert [replace(crop, mirrored=False) for crop in crops[3:]] == crops[:3]
    picture = Image.new("RGB", (200, 100), "red")
    picture.paste("blue", (100, 0, 200, 100))
    for size in ((200, 100), (64, 32)):
        assert fit(picture, *size, Crop(mirrored=True)).getpixel((0, 0)) == (0, 0, 255)
