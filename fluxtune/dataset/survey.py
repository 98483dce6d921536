"""Reads every picture of a data set completely, several at a time, and keeps what can be known of each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from fluxtune.config.dataset import DatasetConfig
from fluxtune.dataset.ahead import DECODERS
from fluxtune.dataset.folder import Item, list_folders
from fluxtune.dataset.images import Size, Stored, read_image
from fluxtune.dataset.masks import checked_mask
from fluxtune.dataset.measures import (
    NO_BORDERS,
    SMALL,
    Borders,
    fingerprints,
    is_blank,
    plain_borders,
    sharpness,
    thumbnail,
)
from fluxtune.errors import DataError
from fluxtune.events import Finding, Progress, Sink
from fluxtune.files import sha256_of


@dataclass(frozen=True)
class Look:
    """What a picture is, seen once.

    Attributes:
        size: (width, height), upright.
        digest: SHA-256 of the file's bytes.
        stored: how it lies in the file.
        sharpness: see ``measures.sharpness``; at the training resolution, if the picture is larger.
        borders, blank, fingerprints: see ``measures``.
        mask_digest: SHA-256 of the bytes of its mask's file, where it has one that can be used.
    """

    size: Size
    digest: str
    stored: Stored
    sharpness: float | None
    borders: Borders
    blank: bool
    fingerprints: tuple[int, ...]
    mask_digest: str | None = None


@dataclass(frozen=True)
class Seen:
    """A picture file, and what was seen in it: a look, or the error that prevented one; what is wrong with its mask."""

    item: Item
    look: Look | None
    error: DataError | None
    mask_error: DataError | None = None
    mask_remark: str = ""


@dataclass(frozen=True)
class Survey:
    """All pictures of a data set in their order, and what was found before they were opened."""

    seen: tuple[Seen, ...]
    findings: tuple[Finding, ...]

    def looked_at(self) -> Iterator[tuple[Item, Look]]:
        """The pictures that could be read."""
        return ((seen.item, seen.look) for seen in self.seen if seen.look is not None)


def survey(config: DatasetConfig, on_event: Sink) -> Survey:
    """Look at everything in the folders of the configuration. Nothing is written."""
    listing = list_folders(config.folders)
    side = max(config.resolution)

    def see(item: Item) -> Seen:
        try:
            look = look_at(item.path, config.background, side)
        except DataError as error:
            return Seen(item, None, error)
        if item.mask is None:
            return Seen(item, look, None)
        try:
            remark = checked_mask(item.mask, item.path, look.size)[1]
            return Seen(item, replace(look, mask_digest=sha256_of(item.mask)), None, mask_remark=remark)
        except DataError as error:
            return Seen(item, look, None, mask_error=error)

    seen: list[Seen] = []
    total, started = len(listing.items), time.monotonic()
    with ThreadPoolExecutor(DECODERS, thread_name_prefix="decode") as pool:
        for number, outcome in enumerate(pool.map(see, listing.items), start=1):
            seen.append(outcome)
            rate = number / max(1e-9, time.monotonic() - started)
            on_event(Progress("read pictures", number, total, "pictures", rate, (total - number) / rate))
    return Survey(tuple(seen), listing.findings)


def look_at(path: Path, background: str, resolution: int) -> Look:
    """Decode a picture and measure it.

    Args:
        resolution: side in pixels of the square with as many pixels as the picture will be trained at.

    Raises:
        DataError: see ``images.read_image``.
    """
    image, stored = read_image(path, background, brightness=True)
    # A large one is shrunk once for all that is measured: no further than the most demanding of it allows.
    shrink = min(int((image.width * image.height) ** 0.5 / resolution), min(image.size) // SMALL)
    measured = image.convert("L").reduce(shrink) if shrink > 1 else image
    small = thumbnail(measured)
    blank = is_blank(small)
    return Look(
        size=image.size,
        digest=sha256_of(path),
        stored=stored,
        sharpness=None if blank else sharpness(measured, resolution),
        borders=NO_BORDERS if blank else plain_borders(small),
        blank=blank,
        fingerprints=fingerprints(small),
    )
