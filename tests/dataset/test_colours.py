"""Colour jitter: further crops in other light, the same for every run."""

from __future__ import annotations

import colorsys
from dataclasses import replace
from statistics import mean

import numpy as np
import pytest
import torch
from PIL import Image

from fluxtune.dataset.colours import HUE_SHARE, Colours, colours_of, recoloured
from fluxtune.dataset.images import CENTRE, crops_of, fit
from fluxtune.dataset.masks import on_tokens

UNCHANGED = Colours(1.0, 1.0, 1.0, 0.0)


def test_the_first_crop_keeps_its_colours_and_each_other_has_its_own() -> None:
    crops = crops_of("digest", 6, 0.1, colour_jitter=0.3)
    assert crops[0] == CENTRE
    assert len({crop.colours for crop in crops[1:]} - {None}) == 5


def test_the_picture_and_the_number_of_the_crop_alone_decide() -> None:
    crops = crops_of("digest", 6, 0.1, colour_jitter=0.3)
    assert crops_of("digest", 4, 0.1, colour_jitter=0.3) == crops[:4]
    assert crops_of("another", 6, 0.1, colour_jitter=0.3)[1] != crops[1]


def test_places_are_those_without_it() -> None:
    crops = crops_of("digest", 6, 0.1, flip=True, colour_jitter=0.3)
    assert [replace(crop, colours=None) for crop in crops] == crops_of("digest", 6, 0.1, flip=True)
    assert [crop.colours for crop in crops[6:]] == [crop.colours for crop in crops[:6]]


def test_factors_lie_around_one_within_the_jitter_and_reach_both_of_its_ends() -> None:
    drawn = [colours_of("digest", index, 0.4) for index in range(300)]
    for factors in zip(*((each.brightness, each.contrast, each.saturation) for each in drawn), strict=True):
        assert 0.6 <= min(factors) < 0.62
        assert 1.38 < max(factors) <= 1.4
        assert mean(factors) == pytest.approx(1, abs=0.05)
    assert 0.9 * 0.4 * HUE_SHARE < max(abs(each.hue) for each in drawn) <= 0.4 * HUE_SHARE


def test_without_a_change_the_pixels_stay(photographs: dict[str, Image.Image]) -> None:
    for picture in photographs.values():
        assert np.array_equal(np.asarray(recoloured(picture, UNCHANGED)), np.asarray(picture))


def test_brightness_is_multiplied() -> None:
    grey = Image.new("RGB", (8, 8), (100, 100, 100))
    assert recoloured(grey, replace(UNCHANGED, brightness=1.2)).getpixel((0, 0)) == (120, 120, 120)


def test_contrast_is_about_the_mean() -> None:
    picture = Image.new("RGB", (8, 8), (80, 80, 80))
    picture.paste((120, 120, 120), (0, 0, 4, 8))
    changed = recoloured(picture, replace(UNCHANGED, contrast=0.5))
    assert (changed.getpixel((0, 0)), changed.getpixel((7, 7))) == ((110, 110, 110), (90, 90, 90))


def test_saturation_and_hue_leave_greys_alone_and_turn_colours_as_far_as_they_say() -> None:
    picture = Image.new("RGB", (8, 8), (90, 90, 90))
    picture.paste((160, 90, 110), (0, 0, 4, 8))
    greyed = recoloured(picture, replace(UNCHANGED, saturation=0.5)).getpixel((0, 0))
    turned = recoloured(picture, replace(UNCHANGED, hue=0.025))
    assert isinstance(greyed, tuple) and max(greyed) - min(greyed) == pytest.approx(35, abs=1)
    assert turned.getpixel((7, 7)) == (90, 90, 90)
    before, after = (colorsys.rgb_to_hsv(*each.getpixel((0, 0)))[0] for each in (picture, turned))  # type: ignore[misc]
    assert 0.01 < abs((after - before + 0.5) % 1 - 0.5) < 0.05


def test_pixels_change_by_no_more_than_the_factors_allow(photographs: dict[str, Image.Image]) -> None:
    picture = photographs["coffee"]
    for crop in crops_of("digest", 8, 0.0, colour_jitter=0.1)[1:]:
        plain = np.asarray(fit(picture, 64, 64, replace(crop, colours=None)), dtype=float)
        changed = np.asarray(fit(picture, 64, 64, crop), dtype=float)
        assert not np.array_equal(plain, changed)
        assert np.abs(changed - plain).max() < 255 * (1.1 * 1.1 * 1.1 - 1) + 255 * 0.1


def test_masks_are_cut_alike_and_not_recoloured() -> None:
    mask = Image.radial_gradient("L")
    for crop in crops_of("digest", 4, 0.2, flip=True, colour_jitter=0.5):
        plain = on_tokens(mask, 64, 64, replace(crop, colours=None), 16)
        assert torch.equal(on_tokens(mask, 64, 64, crop, 16), plain)
