"""From a request to its single pictures, and to the grids that show them side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path

from fluxtune.dataset.images import Size, open_image
from fluxtune.errors import UsageError
from fluxtune.lora.use import spelled
from fluxtune.sampling.axes import COMPARISON, Axis, Value
from fluxtune.sampling.prompts import PromptRow, row_of
from fluxtune.sampling.request import SampleRequest, seeds_from
from fluxtune.sampling.wanted import MOST, Wanted
from fluxtune.sampling.wildcards import drawn

_MULTIPLE = 16


@dataclass(frozen=True)
class Line:
    """One row of a sheet: its label, a fainter note below it, and the numbers of its pictures."""

    label: str
    note: str
    cells: tuple[int, ...]


@dataclass(frozen=True)
class Sheet:
    """Pictures side by side.

    Attributes:
        title: what all of its pictures share.
        mark: what its file's name ends in, after the number of its first picture.
    """

    title: str
    mark: str
    headings: tuple[str, ...]
    lines: tuple[Line, ...]


def laid_out(request: SampleRequest) -> tuple[list[Wanted], list[Sheet]]:
    """The pictures of a request, in the order of prompts, seeds and then values of axes, and its sheets.

    Raises:
        UsageError: there are too many, or an axis is given twice.
        DataError: a start picture cannot be read, whose shape is wanted.
    """
    if request.again:
        return [replace(wanted, number=number) for number, wanted in enumerate(request.again)], []
    axes = [_with_names(request)] if request.compare else []
    axes += request.axes
    names = [axis.name for axis in axes]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"{twice} is an axis twice", where="--grid", hint="give all of its values at once")
    counted = _subjects(request, varies_seed="seed" in names, varies_prompt="prompt" in names)
    subjects = list(islice(counted, MOST + 1))
    total = len(subjects) * math.prod(len(axis.values) for axis in axes)
    if total > MOST:
        number = f"{total:,}" if len(subjects) <= MOST else f"more than {MOST:,}"
        raise UsageError(f"these are {number} pictures: at most {MOST:,} are made", hint="take fewer values or seeds")
    pictures = _renumbered([_changed(subject, values) for subject in subjects for values in _combinations(axes)])
    folder = None if request.sampling.wildcards is None else Path(request.sampling.wildcards)
    drawn_from = [_drawn(picture, folder) for picture in pictures]
    return drawn_from, _sheets(subjects, axes, drawn_from)


def _with_names(request: SampleRequest) -> Axis:
    """The comparison, whose heading says which LoRAs there are."""
    without, acting = COMPARISON.values
    scales = [spelled(use.scale, use.groups) for use in request.loras]
    names = [
        use.path.stem if scale == "1" else f"{use.path.stem} at {scale}"
        for use, scale in zip(request.loras, scales, strict=True)
    ]
    return replace(COMPARISON, values=(without, replace(acting, label=f"with {' + '.join(names)}")))


def _subjects(request: SampleRequest, varies_seed: bool, varies_prompt: bool) -> Iterator[Wanted]:
    """What is varied by the axes: every prompt with every seed."""
    sampling = request.sampling
    rows: Sequence[str | PromptRow] = [PromptRow.model_construct(prompt="")] if varies_prompt else request.prompts
    for number, given in enumerate(rows):
        row = row_of(given) if isinstance(given, str) else given
        first = request.seeds[0] if row.seed is None else row.seed
        seeds = tuple(dict.fromkeys(request.seeds)) if row.seed is None else (row.seed,)
        if row.count is not None:
            seeds = tuple(seeds_from(first, row.count, row.prompt[:80]))
        start = request.start if row.start is None else Path(row.start)
        width, height = _size(request, row, start)
        for seed in seeds[:1] if varies_seed else seeds:
            yield Wanted(
                prompt=row.prompt,
                seed=seed,
                width=width,
                height=height,
                steps=request.steps if row.steps is None else row.steps,
                guidance=request.guidance if row.guidance is None else row.guidance,
                negative_prompt=sampling.negative_prompt if row.negative_prompt is None else row.negative_prompt,
                true_guidance=sampling.true_guidance if row.true_guidance is None else row.true_guidance,
                start=start,
                strength=sampling.strength if row.strength is None else row.strength,
                loras=request.loras,
                number=number,
                name=row.name,
            )


def _size(request: SampleRequest, row: PromptRow, start: Path | None) -> Size:
    """Of a picture from a start picture its shape, where nobody asked for another."""
    width, height = row.width or request.width, row.height or request.height
    if start is None or request.sized or row.width or row.height:
        return width, height
    across, down = open_image(start, "#ffffff").size
    factor = math.sqrt(width * height / (across * down))
    return _nearest_side(across * factor), _nearest_side(down * factor)


def _nearest_side(length: float) -> int:
    return max(_MULTIPLE, round(length / _MULTIPLE) * _MULTIPLE)


def _combinations(axes: Sequence[Axis]) -> Iterator[tuple[Value, ...]]:
    """Values of all axes together; the first axis turns fastest, for its pictures stand side by side."""
    for values in product(*(axis.values for axis in reversed(axes))):
        yield tuple(reversed(values))


def _changed(subject: Wanted, values: Sequence[Value]) -> Wanted:
    """A picture of these values. Comparing comes last, so that scales and checkpoints find the LoRAs."""
    wanted = subject
    for value in reversed(values):
        wanted = value.change(wanted)
    return replace(wanted, marks=tuple(value.mark for value in values if value.mark))


def _renumbered(pictures: list[Wanted]) -> list[Wanted]:
    """Pictures numbered by their prompts, of whatever they come."""
    numbers: dict[tuple[int, str], int] = {}
    for wanted in pictures:
        numbers.setdefault((wanted.number, wanted.prompt), len(numbers))
    return [replace(wanted, number=numbers[wanted.number, wanted.prompt]) for wanted in pictures]


def _drawn(wanted: Wanted, folder: Path | None) -> Wanted:
    prompt, negative = drawn(wanted.prompt, wanted.seed, folder), wanted.negative_prompt
    if wanted.prompt.strip() and not prompt.strip():
        raise UsageError(
            f"seed {wanted.seed} draws a blank prompt", where=wanted.prompt[:80], hint="let no choice leave it blank"
        )
    return replace(
        wanted,
        prompt=prompt,
        negative_prompt=None if negative is None else drawn(negative, wanted.seed, folder),
        template=wanted.prompt,
    )


def _sheets(subjects: Sequence[Wanted], axes: Sequence[Axis], pictures: Sequence[Wanted]) -> list[Sheet]:
    if not axes:
        return []
    across = axes[0].values
    headings = tuple(value.label for value in across)
    mark = "compare" if [axis.name for axis in axes] == [COMPARISON.name] else "grid"
    if len(axes) == 1:
        lines = []
        for number, subject in enumerate(subjects):
            cells = tuple(range(number * len(across), (number + 1) * len(across)))
            lines.append(Line(_shared(subject, pictures, cells), _note(subject, axes), cells))
        return [Sheet("", mark, headings, tuple(lines))]
    down, further = axes[1].values, axes[2:]
    sheets, start = [], 0
    for subject in subjects:
        for fixed in _combinations(further):
            lines = []
            for value in down:
                lines.append(Line(value.label, "", tuple(range(start, start + len(across)))))
                start += len(across)
            cells = tuple(range(start - len(across) * len(down), start))
            told = [_shared(subject, pictures, cells), _note(subject, axes), *(value.label for value in fixed)]
            sheets.append(Sheet(", ".join(filter(None, told)), mark, headings, tuple(lines)))
    return sheets


def _shared(subject: Wanted, pictures: Sequence[Wanted], cells: Sequence[int]) -> str:
    """The prompt of these pictures; the one that theirs were drawn from, where they differ."""
    prompts = {pictures[cell].prompt for cell in cells}
    return prompts.pop() if len(prompts) == 1 else subject.prompt


def _note(subject: Wanted, axes: Sequence[Axis]) -> str:
    return "" if any(axis.name == "seed" for axis in axes) else f"seed {subject.seed}"
