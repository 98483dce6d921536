"""Many pictures through a captioner: as many at once as are fastest and fit, decoded while it works."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from PIL import Image

from fluxtune.captioning.captioner import Captioner
from fluxtune.errors import DataError, OutOfMemoryError

T = TypeVar("T")

MOST = 32
"""Pictures at once at most: enough to fill a card, few enough for their pixels to lie in memory."""
WORTHWHILE = 1.1
"""A larger batch is kept while it gives so many times the pictures a second."""
DECODERS = 2


class BatchSize:
    """How many pictures go at once: a fixed number, or the largest power of two that was worth it.

    It grows while that makes captioning faster, and shrinks for good where memory ends.
    """

    def __init__(self, fixed: int | None) -> None:
        self.now = fixed or 1
        self._growing = fixed is None
        self._rate = 0.0

    def took(self, pictures: int, seconds: float) -> None:
        """Learns from a batch that went through. The first of each size also pays for memory and kernels."""
        if not self._growing or pictures < self.now:
            return
        rate = pictures / max(seconds, 1e-9)
        if rate < WORTHWHILE * self._rate:
            self._growing = False
            self.now = max(1, self.now // 2)
        else:
            self._rate = rate
            self.now = min(MOST, 2 * self.now)
            self._growing = self.now < MOST

    def did_not_fit(self) -> None:
        """Learns that memory ended; the size, of more than one, is halved and stays."""
        self._growing = False
        self.now //= 2


def caption_each(
    items: Sequence[T], read: Callable[[T], Image.Image], captioner: Captioner, size: BatchSize
) -> Iterator[tuple[T, str | DataError]]:
    """Each item with what the captioner says of its picture, or with what is wrong with the file; in their order.

    The pictures of the next batch are decoded while the captioner works on this one; no more than two batches of them
    are ever held.

    Raises:
        OutOfMemoryError: not even one picture fits.
    """

    def try_to_read(item: T) -> Image.Image | DataError:
        try:
            return read(item)
        except DataError as error:
            return error

    with ThreadPoolExecutor(DECODERS) as pool:
        waiting = list(items)
        ahead = [pool.submit(try_to_read, item) for item in waiting[: size.now]]
        while waiting:
            read_now = [future.result() for future in ahead[: size.now]]
            now, waiting = waiting[: len(read_now)], waiting[len(read_now) :]
            ahead = ahead[len(read_now) :]
            ahead += [pool.submit(try_to_read, item) for item in waiting[len(ahead) : 2 * size.now]]
            images = [image for image in read_now if isinstance(image, Image.Image)]
            texts = iter(_said(images, captioner, size))
            for item, image in zip(now, read_now, strict=True):
                yield item, next(texts) if isinstance(image, Image.Image) else image


def _said(images: list[Image.Image], captioner: Captioner, size: BatchSize) -> list[str]:
    """Texts of all images, in fewer at once where memory ends."""
    texts: list[str] = []
    while len(texts) < len(images):
        part = images[len(texts) : len(texts) + size.now]
        started = time.monotonic()
        try:
            texts += captioner(part)
        except OutOfMemoryError:
            if size.now == 1:
                raise
            size.did_not_fit()
        else:
            size.took(len(part), time.monotonic() - started)
    return texts
