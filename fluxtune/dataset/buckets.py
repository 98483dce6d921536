"""Aspect-ratio buckets: which size each picture is trained at.

Pure functions of picture sizes and settings. What ``plan`` says is what the loader cuts, the cache keeps and
the batches group: nobody rounds a second time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from fluxtune.config.dataset import DatasetConfig
from fluxtune.dataset.images import Size, crop_box


@dataclass(frozen=True)
class Sample:
    """A picture (its index in the list of pictures) at one training size, in pixels."""

    picture: int
    width: int
    height: int

    @property
    def size(self) -> Size:
        """(width, height)."""
        return self.width, self.height


@dataclass(frozen=True)
class Plan:
    """Every sample of an epoch (before repeats), in the order of the pictures.

    Attributes:
        samples: which picture at which size.
        pictures: how many there are.
        left_out: samples that are not made, for their picture would have to be enlarged.
        kept: pictures that are too small for every resolution, and kept at the smallest all the same.
    """

    samples: tuple[Sample, ...]
    pictures: int
    left_out: tuple[Sample, ...]
    kept: tuple[int, ...]

    @property
    def buckets(self) -> dict[Size, int]:
        """Samples of each size, the largest area first."""
        counts = Counter(sample.size for sample in self.samples)
        return dict(sorted(counts.items(), key=lambda item: (-item[0][0] * item[0][1], item[0])))

    def summary(self) -> str:
        """One line for people; it always says how many pictures are used, of how many."""
        used = len({sample.picture for sample in self.samples})
        sizes = ", ".join(f"{width}x{height}: {count}" for (width, height), count in self.buckets.items())
        return f"used {used} of {self.pictures} pictures as {len(self.samples)} samples ({sizes})"


def bucket_sizes(resolution: int, max_aspect: float, multiple: int = 16) -> tuple[Size, ...]:
    """The largest sizes of each shape with sides of ``multiple`` pixels and at most ``resolution**2`` pixels.

    Largest: with one more ``multiple`` on either side there would be too many pixels.

    Args:
        resolution: side of the square with as many pixels as each picture gets.
        max_aspect: long side over short side at most.
        multiple: what sides are multiples of: the VAE's downscale times the transformer's patch.

    Returns:
        (width, height) from the tallest to the widest; the square (rounded down) is always among them.
    """
    cells = resolution**2 // multiple**2
    square = resolution // multiple
    sizes = {(square, square)}
    for long in range(square + 1, cells + 1):
        short = cells // long
        if short < 1 or long / short > max_aspect:
            break
        if (long + 1) * short > cells:
            sizes |= {(long, short), (short, long)}
    return tuple((width * multiple, height * multiple) for width, height in sorted(sizes))


def assign(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket whose shape is nearest to ``size``: the one that crops least; of two alike, the larger."""
    aspect = log(size[0] / size[1])
    return min(buckets, key=lambda bucket: (abs(log(bucket[0] / bucket[1]) - aspect), -bucket[0] * bucket[1], bucket))


def enlargement(size: Size, width: int, height: int) -> float:
    """By how much a picture of ``size`` is scaled to cover ``width`` x ``height``; above 1 it is enlarged."""
    return max(width / size[0], height / size[1])


def crop_share(size: Size, width: int, height: int) -> float:
    """The share of a picture of ``size`` that is cut off at ``width`` x ``height``, from 0 to 1."""
    left, top, right, bottom = crop_box(size, width, height)
    return 1 - (right - left) * (bottom - top) / (size[0] * size[1])


def plan(sizes: Sequence[Size], config: DatasetConfig, multiple: int = 16) -> Plan:
    """Every picture at each resolution of the configuration.

    With ``upscale`` off a picture is left out where it would be enlarged, but never everywhere: one that is
    too small for all resolutions is kept at the smallest.

    Args:
        sizes: (width, height) of each picture.
        multiple: see ``bucket_sizes``.
    """
    max_aspect = config.max_aspect if config.buckets else 1.0
    tables = [bucket_sizes(resolution, max_aspect, multiple) for resolution in sorted(set(config.resolution))]
    samples: list[Sample] = []
    left_out: list[Sample] = []
    kept: list[int] = []
    for index, size in enumerate(sizes):
        wanted = list(dict.fromkeys(assign(size, table) for table in tables))
        fitting = [bucket for bucket in wanted if config.upscale or enlargement(size, *bucket) <= 1]
        if not fitting:
            kept.append(index)
        chosen = fitting or wanted[:1]
        samples += [Sample(index, *bucket) for bucket in chosen]
        left_out += [Sample(index, *bucket) for bucket in wanted if bucket not in chosen]
    return Plan(tuple(samples), len(sizes), tuple(left_out), tuple(kept))
