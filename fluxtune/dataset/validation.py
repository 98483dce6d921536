"""All checks of a data set together, and the report that they make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from fluxtune.config.schema import Config
from fluxtune.dataset.batches import Batches
from fluxtune.dataset.buckets import Plan, crop_share, enlargement, plan
from fluxtune.dataset.caption_checks import TokenLimit, check_captions
from fluxtune.dataset.findings import SEVERITIES, found
from fluxtune.dataset.folder import folder_path
from fluxtune.dataset.images import Size, crop_box
from fluxtune.dataset.likeness import check_likeness
from fluxtune.dataset.picture_checks import check_pictures
from fluxtune.dataset.pictures import Picture, missing_captions, picture_of
from fluxtune.dataset.shape_checks import check_shapes
from fluxtune.dataset.survey import Look, Survey, survey
from fluxtune.events import Finding, Sink

REPORT_SCHEMA = 1
"""Of the report as data: raised when a field changes its meaning or goes; new fields may come at any time."""

FEW, MANY = 8, 100
"""Pictures of one subject below and above which something is said."""

LOOKS_AT_EACH, FEWEST_LOOKS, MOST_LOOKS = 100, 1000, 3000
"""How often a picture is usually seen in a FLUX.1-dev LoRA of one subject, and pictures seen in a run in all."""

UNBALANCED = 3
"""How many times as often as another a folder is seen before something is said."""

SIDES = (512, 768, 1024, 1536)
"""Bounds in pixels of the classes of the resolution histogram, by the shorter side."""


@dataclass(frozen=True)
class Report:
    """What `fluxtune validate` found.

    Attributes:
        folders: where the pictures are.
        resolution: side of the square with as many pixels as each picture gets, in pixels; one or several.
        survey: every picture, read or not.
        pictures: those that could be read, in their order.
        looks: what was seen in them, in the same order.
        plan: which bucket each of them goes to.
        findings: errors, warnings and notes, in the order in which they were found.
        tokens: whether ``counted`` by the base model's tokenizers or ``estimated``.
        wants_captions: whether `fluxtune train` refuses the data set for the captions that are missing.
    """

    folders: tuple[str, ...]
    resolution: tuple[int, ...]
    survey: Survey
    pictures: tuple[Picture, ...]
    looks: tuple[Look, ...]
    plan: Plan
    findings: tuple[Finding, ...]
    tokens: str
    wants_captions: bool

    def count(self, severity: str) -> int:
        """How many findings have that severity."""
        return sum(each.severity == severity for each in self.findings)

    def as_data(self) -> dict[str, Any]:
        """The report as JSON data; docs/validate.md documents it."""
        samples: dict[int, list[dict[str, Any]]] = {}
        for sample in self.plan.samples:
            size = self.pictures[sample.picture].size
            samples.setdefault(sample.picture, []).append(
                {
                    "width": sample.width,
                    "height": sample.height,
                    "crop": [round(side, 2) for side in crop_box(size, *sample.size)],
                    "cropped": round(crop_share(size, *sample.size), 4),
                    "enlarged": round(enlargement(size, *sample.size), 4),
                }
            )
        rows = [
            _row(picture, look, samples.get(index, []))
            for index, (picture, look) in enumerate(zip(self.pictures, self.looks, strict=True))
        ]
        return {
            "report_schema": REPORT_SCHEMA,
            "folders": list(self.folders),
            "resolution": list(self.resolution),
            "files": len(self.survey.seen),
            "counts": {f"{severity}s": self.count(severity) for severity in SEVERITIES},
            "tokens": self.tokens,
            "pictures": rows,
            "buckets": [
                {"width": width, "height": height, "samples": count}
                for (width, height), count in self.plan.buckets.items()
            ],
            "findings": [asdict(each) for each in self.findings],
        }


def validate(
    config: Config,
    limits: Sequence[TokenLimit],
    side_multiple: int,
    on_event: Sink,
    told: Sequence[Finding] = (),
) -> Report:
    """Read and check everything in ``dataset.folders``; findings are also emitted one by one. Nothing is written.

    Args:
        limits: how captions are counted, see ``caption_checks``.
        side_multiple: what sides of buckets are multiples of, in pixels.
        told: what was found before the pictures were looked at.
    """
    dataset = config.dataset
    surveyed = survey(dataset, on_event)
    items = [seen.item for seen in surveyed.seen]
    read = list(surveyed.looked_at())
    pictures = tuple(picture_of(item, look, item.caption or "") for item, look in read)
    buckets = plan([picture.size for picture in pictures], dataset, side_multiple)
    findings = (
        *told,
        *surveyed.findings,
        *check_pictures(surveyed),
        *check_captions(items, dataset.trigger, limits, dataset.missing_captions),
        *check_likeness(read),
        *check_shapes(buckets, pictures, config.training.batch_size),
        *_check_amount(pictures),
        *_notes(config, pictures, buckets),
    )
    for each in findings:
        on_event(each)
    return Report(
        folders=tuple(str(folder_path(folder.path)) for folder in dataset.folders),
        resolution=tuple(dataset.resolution),
        survey=surveyed,
        pictures=pictures,
        looks=tuple(look for _, look in read),
        plan=buckets,
        findings=findings,
        tokens="counted" if all(limit.exact for limit in limits) else "estimated",
        wants_captions=dataset.missing_captions != "caption" and bool(missing_captions(items, items, dataset)),
    )


def _row(picture: Picture, look: Look, samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": picture.name,
        "path": str(picture.path),
        "caption": picture.caption,
        "width": look.size[0],
        "height": look.size[1],
        "sha256": look.digest,
        "repeats": picture.repeats,
        "sharpness": None if look.sharpness is None else round(look.sharpness, 4),
        "stored": asdict(look.stored),
        "samples": samples,
    }


def _check_amount(pictures: Sequence[Picture]) -> Iterator[Finding]:
    number = sum(picture.is_subject for picture in pictures)
    if 0 < number < FEW:
        hint = "10 to 50 different pictures teach a subject best"
        yield found("few-pictures", f"{number} to learn from", hint=hint)
    elif number > MANY:
        hint = "for one subject, keep the 10 to 50 best; for a style, many are fine"
        yield found("many-pictures", f"{number} to learn from", hint=hint)


def _notes(config: Config, pictures: Sequence[Picture], buckets: Plan) -> Iterator[Finding]:
    if not pictures:
        return
    for size, number in buckets.buckets.items():
        shares = [crop_share(pictures[sample.picture].size, *size) for sample in buckets.samples if sample.size == size]
        message = f"{size[0]} x {size[1]}: {_pictures(number)}, at most {max(shares):.0%} cut off"
        yield found("buckets", message)
    yield found("resolutions", _histogram([picture.size for picture in pictures]))
    yield from _of_steps(config, pictures, buckets)


def _histogram(sizes: Sequence[Size]) -> str:
    """`shorter side below 512 px: 3, 512 to 767: 2, 1536 and more: 7`."""
    classes = Counter(sum(min(size) >= bound for bound in SIDES) for size in sizes)
    names = [
        f"below {SIDES[0]} px",
        *(f"{low} to {high - 1}" for low, high in pairwise(SIDES)),
        f"{SIDES[-1]} and more",
    ]
    return "shorter side " + ", ".join(f"{names[index]}: {count}" for index, count in sorted(classes.items()))


def _of_steps(config: Config, pictures: Sequence[Picture], buckets: Plan) -> Iterator[Finding]:
    training, crops = config.training, config.dataset.crops * (2 if config.dataset.flip else 1)
    entries = [
        (index, sample.size, pictures[sample.picture].repeats) for index, sample in enumerate(buckets.samples * crops)
    ]
    batches = Batches(entries, training.batch_size, training.seed).per_epoch
    epoch = batches / training.accumulation
    each_step = training.batch_size * training.accumulation
    looks = training.steps * each_step
    yield found(
        "epoch",
        f"an epoch is {epoch:g} steps: {len(entries)} samples in {batches} batches of up to {training.batch_size}; "
        f"training.steps = {training.steps} is {training.steps / epoch:.1f} epochs",
    )
    subject = sum(picture.is_subject for picture in pictures)
    wanted = min(MOST_LOOKS, max(FEWEST_LOOKS, LOOKS_AT_EACH * subject))
    yield found(
        "suggestion",
        f"about {max(1, round(wanted / each_step / 50)) * 50} steps are usual for {_pictures(subject)} of one "
        f"subject at {each_step} a step; training.steps shows {looks} pictures, {looks / len(pictures):.0f} times each",
    )
    yield from _of_repeats(config, pictures)


def _of_repeats(config: Config, pictures: Sequence[Picture]) -> Iterator[Finding]:
    """Where one folder is seen much more often than another: the repeats that would balance them."""
    seen = {
        folder.path: sum(
            picture.repeats for picture in pictures if picture.path.is_relative_to(folder_path(folder.path))
        )
        for folder in config.dataset.folders
    }
    most = max(seen.values())
    for folder in config.dataset.folders:
        if 0 < seen[folder.path] * UNBALANCED <= most:
            repeats = round(folder.repeats * most / seen[folder.path])
            message = f"this folder is seen {seen[folder.path]} times an epoch, another {most} times"
            yield found("suggestion", f"{message}; repeats = {repeats} would balance them", where=folder.path)


def _pictures(number: int) -> str:
    return f"{number} picture{'' if number == 1 else 's'}"
