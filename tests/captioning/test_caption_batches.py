from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from PIL import Image

from fluxtune.captioning.batches import MOST, BatchSize, caption_each
from fluxtune.errors import DataError, OutOfMemoryError

PICTURE = Image.new("RGB", (8, 8))


class Fake:
    """A captioner that holds so many pictures at most, and remembers how many it was given."""

    def __init__(self, most: int) -> None:
        self.most, self.given = most, []

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        self.given.append(len(images))
        if len(images) > self.most:
            raise OutOfMemoryError("too many")
        return [str(image.width) for image in images]


def numbered(index: int) -> Image.Image:
    return Image.new("RGB", (index + 1, 8))


def captions(captioner: Fake, count: int, fixed: int | None = None) -> list[str | DataError]:
    return [text for _, text in caption_each(range(count), numbered, captioner, BatchSize(fixed))]


def test_every_picture_gets_its_own_caption_whatever_fits() -> None:
    for most in (1, 3, 8, 1000):
        assert captions(Fake(most), 50, fixed=8) == [str(index + 1) for index in range(50)]


def test_a_batch_that_does_not_fit_is_halved_for_good() -> None:
    captioner = Fake(3)
    captions(captioner, 20, fixed=8)
    assert captioner.given[:3] == [8, 4, 2]
    assert max(captioner.given[2:]) == 2


@pytest.mark.parametrize("fixed", [8, None])
def test_memory_that_ends_in_the_middle_repeats_no_caption_and_loses_none(fixed: int | None) -> None:
    captioner = Fake(1000)
    found = []
    for _, text in caption_each(range(70), numbered, captioner, BatchSize(fixed)):
        found.append(text)
        if len(found) == 20:
            captioner.most = 2
    assert found == [str(index + 1) for index in range(70)]
    assert captioner.given[-1] <= 2


def test_where_not_even_one_fits_the_captioner_says_so() -> None:
    with pytest.raises(OutOfMemoryError):
        captions(Fake(0), 3)


def test_the_size_grows_while_larger_batches_are_faster() -> None:
    size = BatchSize(None)
    seen = []
    for _ in range(8):
        seen.append(size.now)
        size.took(size.now, 1.0)  # any number takes the same time, as on a card that is not full
    assert seen[:6] == [1, 2, 4, 8, 16, 32]
    assert size.now == MOST


def test_the_size_goes_back_where_a_larger_batch_is_no_faster() -> None:
    size = BatchSize(None)
    for _ in range(6):
        size.took(size.now, float(size.now))
    assert size.now == 1


def test_a_last_part_of_a_batch_teaches_nothing() -> None:
    size = BatchSize(None)
    size.took(1, 1.0)
    size.took(1, 1.0)
    assert size.now == 2


def test_a_picture_that_cannot_be_read_takes_nothing_from_the_others() -> None:
    def read(index: int) -> Image.Image:
        if index in (0, 4, 5):
            raise DataError(f"damaged {index}")
        return numbered(index)

    found = dict(caption_each(range(8), read, Fake(4), BatchSize(4)))
    assert [index for index, text in found.items() if isinstance(text, DataError)] == [0, 4, 5]
    assert [text for text in found.values() if isinstance(text, str)] == ["2", "3", "4", "7", "8"]


def test_few_pictures_are_held_at_once_however_many_there_are() -> None:
    lock, held, most = threading.Lock(), 0, 0

    def read(index: int) -> Image.Image:
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        return numbered(index)

    for _ in caption_each(range(200), read, Fake(1000), BatchSize(4)):
        with lock:
            held -= 1
    assert most <= 12


def test_work_that_is_left_early_leaves_no_threads() -> None:
    before = threading.active_count()
    running = caption_each(range(100), numbered, Fake(4), BatchSize(4))
    next(running)
    running.close()
    assert threading.active_count() == before
