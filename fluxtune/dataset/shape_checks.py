"""What becomes of each picture in its bucket: enlarged, cropped, alone, left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fluxtune.dataset.buckets import Plan, Sample, crop_share, enlargement
from fluxtune.dataset.findings import Severity, found
from fluxtune.dataset.pictures import Picture
from fluxtune.events import Finding

NOTICEABLE = 1.1
"""Enlarging by less than this factor is not worth a warning."""

CROPPED = 0.2
"""Nor is cutting off less than this share of a picture."""


def check_shapes(plan: Plan, pictures: Sequence[Picture], batch_size: int) -> Iterator[Finding]:
    """Findings of the bucket plan, one a picture and check.

    Args:
        pictures: those that the plan was made of.
        batch_size: with one picture a batch it is no harm to be alone in a bucket.
    """
    by_picture: dict[int, list[Sample]] = {}
    for sample in plan.samples:
        by_picture.setdefault(sample.picture, []).append(sample)
    lone = {size for size, count in plan.buckets.items() if count == 1}
    for index, samples in by_picture.items():
        size = pictures[index].size
        width, height = size
        largest = max(samples, key=lambda sample: enlargement(size, *sample.size))
        if (scale := enlargement(size, *largest.size)) > NOTICEABLE:
            message = f"{width} x {height} pixels, enlarged {scale:.2f} times to {_named(largest)}"
            yield _one("small", pictures[index], message)
        narrowest = max(samples, key=lambda sample: crop_share(size, *sample.size))
        if (share := crop_share(size, *narrowest.size)) > CROPPED:
            message = f"{width} x {height} pixels, of which {share:.0%} are cut off at {_named(narrowest)}"
            yield _one("cropped", pictures[index], message)
        for sample in samples:
            if sample.size in lone and len(by_picture) > 1:
                yield _one("lone-bucket", pictures[index], f"alone at {_named(sample)}", batch_size == 1)
    for sample in plan.left_out:
        message = f"left out at {_named(sample)}: it would have to be enlarged"
        yield _one("left-out", pictures[sample.picture], message)
    for index in plan.kept:
        yield _one("too-small", pictures[index], "too small for every resolution, kept at the smallest")


def _one(check: str, picture: Picture, message: str, harmless: bool = False) -> Finding:
    severity: Severity | None = "note" if harmless else None
    return found(check, message, where=str(picture.path), picture=picture.name, severity=severity)


def _named(sample: Sample) -> str:
    return f"{sample.width} x {sample.height}"
