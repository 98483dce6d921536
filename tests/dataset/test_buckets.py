"""Buckets: which sizes exist, which picture gets which, and that no picture is ever lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fluxtune.config.dataset import DatasetConfig
from fluxtune.dataset.buckets import Sample, assign, bucket_sizes, crop_share, enlargement, plan
from fluxtune.dataset.images import fit, open_image
from fluxtune.dataset.pictures import read_folders
from fluxtune.events import ignore

SHAPES = [
    (4032, 3024),
    (3024, 4032),
    (6000, 4000),
    (1920, 1080),
    (1080, 1920),
    (1000, 1000),
    (5000, 1000),
    (7, 900),
]


@pytest.mark.parametrize("multiple", [16, 32, 64])
@pytest.mark.parametrize("resolution", [128, 512, 768, 1000, 1024])
def test_buckets_are_whole_multiples_within_the_pixels_and_the_aspect(resolution: int, multiple: int) -> None:
    sizes = bucket_sizes(resolution, 2.0, multiple)
    for width, height in sizes:
        assert width % multiple == height % multiple == 0
        assert width * height <= resolution**2
        assert max(width, height) <= 2 * min(width, height)
        assert (height, width) in sizes
    square = resolution // multiple * multiple
    assert (square, square) in sizes


def test_buckets_use_nearly_all_pixels_that_they_may() -> None:
    sizes = bucket_sizes(1024, 2.0)
    assert len(sizes) > 30
    assert min(width * height for width, height in sizes) > 0.97 * 1024**2


def test_the_small_buckets_are_known() -> None:
    assert bucket_sizes(128, 2.0) == ((96, 160), (112, 144), (128, 128), (144, 112), (160, 96))


@pytest.mark.parametrize(("resolution", "side"), [(1024, 1024), (1000, 992)])
def test_an_aspect_of_one_leaves_the_square_alone(resolution: int, side: int) -> None:
    assert bucket_sizes(resolution, 1.0) == ((side, side),)


def test_no_bucket_could_be_larger_without_breaking_a_limit() -> None:
    for width, height in set(bucket_sizes(512, 4.0)) - {(512, 512)}:
        assert (width + 16) * height > 512**2 and width * (height + 16) > 512**2


@pytest.mark.parametrize("size", SHAPES)
def test_a_picture_gets_the_bucket_that_crops_least(size: tuple[int, int]) -> None:
    buckets = bucket_sizes(1024, 2.0)
    chosen = assign(size, buckets)
    assert crop_share(size, *chosen) == pytest.approx(min(crop_share(size, *bucket) for bucket in buckets))


def test_common_shapes_lose_almost_nothing() -> None:
    buckets = bucket_sizes(1024, 2.0)
    for size in [(4032, 3024), (6000, 4000), (1920, 1080), (1000, 1000)]:
        assert crop_share(size, *assign(size, buckets)) < 0.03


def test_crop_and_enlargement_are_what_they_say() -> None:
    assert crop_share((200, 100), 64, 64) == pytest.approx(0.5)
    assert crop_share((200, 100), 64, 32) == pytest.approx(0.0)
    assert enlargement((200, 100), 64, 64) == pytest.approx(0.64)
    assert enlargement((32, 100), 64, 64) == pytest.approx(2.0)


def test_every_picture_is_seen_at_every_resolution() -> None:
    result = plan(SHAPES, DatasetConfig(resolution=[512, 1024]))
    assert [sample.picture for sample in result.samples] == [index for index in range(len(SHAPES)) for _ in (0, 1)]
    first, second = result.samples[:2]
    assert (first.size, second.size) == ((592, 432), (1184, 880))
    assert result.summary().startswith("used 8 of 8 pictures as 16 samples (")


def test_without_buckets_every_picture_is_a_square() -> None:
    result = plan(SHAPES, DatasetConfig(resolution=[512], buckets=False))
    assert result.buckets == {(512, 512): len(SHAPES)}


def test_sides_are_multiples_of_what_the_model_wants() -> None:
    for sample in plan(SHAPES, DatasetConfig(resolution=[720]), multiple=32).samples:
        assert sample.width % 32 == sample.height % 32 == 0


def test_resolutions_that_come_to_the_same_size_are_one_sample() -> None:
    result = plan([(500, 500)], DatasetConfig(resolution=[512, 528]), multiple=64)
    assert result.samples == (Sample(0, 512, 512),)


def test_without_upscaling_a_small_picture_is_left_out_where_it_would_be_enlarged() -> None:
    config = DatasetConfig(resolution=[512, 1024], upscale=False)
    result = plan([(2000, 2000), (800, 800), (512, 512)], config)
    assert [(sample.picture, sample.width) for sample in result.samples] == [
        (0, 512),
        (0, 1024),
        (1, 512),
        (2, 512),
    ]
    assert result.left_out == (Sample(1, 1024, 1024), Sample(2, 1024, 1024))


def test_a_picture_that_is_too_small_everywhere_is_kept_at_the_smallest_resolution() -> None:
    result = plan([(300, 300)], DatasetConfig(resolution=[1024, 512], upscale=False))
    assert result.samples == (Sample(0, 512, 512),)
    assert result.kept == (0,)


def test_real_photographs_are_cut_to_exactly_the_planned_sizes(
    photo_folder: Path, config_for: Callable[..., DatasetConfig]
) -> None:
    config = config_for(photo_folder, resolution=[128, 192])
    read = read_folders(config, ignore)
    result = plan([picture.size for picture in read], config)
    assert result.summary().startswith("used 4 of 4 pictures as 8 samples")
    for sample in result.samples:
        picture = open_image(read[sample.picture].path, config.background)
        assert fit(picture, *sample.size).size == sample.size
