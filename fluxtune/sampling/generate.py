"""Sampling: the pictures of a request, one batch after the other, with the LoRAs that each of them wants."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from fluxtune import files
from fluxtune.environment.device import capacity_of, pick_device, warn_of_the_processor, warn_without_bf16
from fluxtune.errors import BaseModelError, UsageError
from fluxtune.events import Phase, Picture, Progress, Sink, ignore
from fluxtune.flux.base import Base, open_base
from fluxtune.flux.denoise import Request, Start, batches_looking_ahead, generate_together
from fluxtune.flux.load import image_pipeline, load_transformer, load_vae
from fluxtune.flux.weights import DTYPES
from fluxtune.lora.files import read_metadata
from fluxtune.lora.use import LoraUse
from fluxtune.memory.shortage import fits_in_memory
from fluxtune.nano import EMBEDDED
from fluxtune.sampling.fitting import fitted
from fluxtune.sampling.grid import Row, draw_sheet
from fluxtune.sampling.jobs import Job, jobs_of
from fluxtune.sampling.layout import Sheet, laid_out
from fluxtune.sampling.loras import Lora, acting, apply_to_transformer, open_lora
from fluxtune.sampling.metadata import base_facts, told_of_grid, told_of_picture
from fluxtune.sampling.picture_files import ENDINGS, Told, require_room, save
from fluxtune.sampling.request import SampleRequest
from fluxtune.sampling.simulation import Painting
from fluxtune.sampling.texts import Texts
from fluxtune.sampling.wanted import Wanted
from fluxtune.sentences import counted

_SMALLER = "take a smaller preset (`fluxtune presets` lists them) or a smaller --size"


@dataclass(frozen=True)
class SampleResult:
    """The files made. Pictures are in the order of prompts, then seeds, then values of axes, the first fastest."""

    pictures: list[Path]
    grids: list[Path]

    @property
    def grid(self) -> Path | None:
        """The first grid."""
        return self.grids[0] if self.grids else None


@dataclass(frozen=True)
class _Session:
    """What all pictures of a request are made with, and what came of them so far."""

    request: SampleRequest
    base: Base
    device: str
    loras: Mapping[Path, Lora]
    pictures: Sequence[Wanted]
    requests: Sequence[Request]
    paths: Sequence[Path]
    on_event: Sink
    told: dict[int, Told] = field(default_factory=dict)


def sample(request: SampleRequest, on_event: Sink = ignore, tries_anyway: bool = False) -> SampleResult:
    """Make the pictures of a request, each written as it comes.

    The request, the LoRAs, the base model and sizes are checked before any weights load. Text encoders leave memory
    before the transformer comes.

    Raises:
        UsageError: a size, a prompt or a LoRA's path is wrong.
        DataError: a start picture cannot be read.
        BaseModelError: the base model is missing or wrong, or a LoRA does not fit it.
        StorageError: a picture cannot be written.
        OutOfMemoryError: the model or a picture does not fit in memory, foretold or found.
    """
    device = pick_device(request.device)
    if request.model.base != EMBEDDED:
        warn_of_the_processor(device, request.device, on_event)
    warn_without_bf16(device, on_event)
    pictures, sheets = laid_out(request)
    # Before the base model, whose download can take an hour.
    uses = list(dict.fromkeys(use.path for wanted in pictures for use in wanted.loras))
    for path in uses:
        read_metadata(path)
    files.require_folder(request.output)
    base = open_base(request.model, on_event)
    _check_same(request, base)
    _check_sizes(pictures, base)
    request = replace(request, memory=fitted(_painting(request, pictures, base, device), on_event, tries_anyway))
    session = _Session(
        request=request,
        base=base,
        device=device,
        loras={path: open_lora(LoraUse(path), base, on_event) for path in uses},
        pictures=pictures,
        requests=[_as_request(wanted, base) for wanted in pictures],
        paths=_paths(request, pictures),
        on_event=on_event,
    )
    with fits_in_memory("sampling", _SMALLER), _compiles():
        _paint(session)
    return SampleResult(list(session.paths), [_save_sheet(session, sheet) for sheet in sheets])


def _painting(request: SampleRequest, pictures: Sequence[Wanted], base: Base, device: str) -> Painting:
    """What decides about memory: the most of everything that a picture has."""
    return Painting(
        base=base,
        memory=request.memory,
        dtype=DTYPES[request.precision],
        size=max(((wanted.width, wanted.height) for wanted in pictures), key=lambda size: size[0] * size[1]),
        batch=min(request.sampling.batch_size, len(pictures)),
        led_away=any(wanted.negative_prompt is not None for wanted in pictures),
        started=any(wanted.start is not None for wanted in pictures),
        lora_bytes=max(sum(use.path.stat().st_size for use in wanted.loras) for wanted in pictures),
        as_cuda=device == "cuda" or request.memory.budget is not None,
        capacity=capacity_of(request.memory.budget, device),
        to_the_bit=bool(request.again),
    )


def _as_request(wanted: Wanted, base: Base) -> Request:
    return Request(
        prompt=wanted.prompt,
        width=wanted.width,
        height=wanted.height,
        steps=wanted.steps or base.sampling_steps,
        guidance=wanted.guidance,
        seed=wanted.seed,
        negative_prompt=wanted.negative_prompt,
        true_guidance=wanted.true_guidance if wanted.negative_prompt is not None else 1.0,
        start=None if wanted.start is None else Start(wanted.start, wanted.strength),
    )


def _paint(session: _Session) -> None:
    request, base, device, on_event = session.request, session.base, session.device, session.on_event
    jobs = jobs_of(session.pictures, session.requests, request.sampling.batch_size)
    _tell(session, jobs)
    texts = Texts(session.loras)
    texts.encode(request, base, session.pictures, device, on_event)
    pipeline = _load(session)
    on_event(Phase("sample", counted(len(session.pictures), "picture")))
    count_step = _step_counter(sum(job.requests[0].steps_taken for group in jobs.values() for job in group), on_event)
    for uses, group in jobs.items():
        apply_to_transformer(pipeline, acting(session.loras, uses))
        text_of = partial(texts.of, uses, device=device)
        batches = [job.requests for job in group]
        for job, batch in zip(group, batches_looking_ahead(base, pipeline, batches, text_of), strict=True):
            made = generate_together(base, pipeline, text_of, batch, count_step)
            for number, place in job.kept:
                _save(session, number, made[place.index])


def _tell(session: _Session, jobs: Mapping[tuple[LoraUse, ...], Sequence[Job]]) -> None:
    """What will be told of each picture, which a file must have room for."""
    of_base = base_facts(session.request, session.base)
    for uses, group in jobs.items():
        loras = acting(session.loras, uses)
        for number, place in (kept for job in group for kept in job.kept):
            picture, wanted = session.requests[number], session.pictures[number]
            told = told_of_picture(session.request, of_base, picture, place, wanted, loras, session.device)
            require_room(told, session.request.sampling.format)
            session.told[number] = told


def _check_same(request: SampleRequest, base: Base) -> None:
    """Whether the base model is the one that pictures were made with before."""
    if request.fingerprint not in (None, base_facts(request, base).get("base_fingerprint")):
        raise BaseModelError(
            f"the picture was made with other files than those of {base.name}"
            + "".join(f" and {file.name}" for file in base.files.values()),
            where="--base",
            hint="give the base model that it was made with: --base FOLDER, and for single files in it --set "
            "model.transformer=FILE and the like",
        )


def _check_sizes(pictures: Sequence[Wanted], base: Base) -> None:
    multiple = base.family.side_multiple
    for name, side in {(name, getattr(wanted, name)): None for wanted in pictures for name in ("width", "height")}:
        if side < multiple or side % multiple:
            below = max(multiple, side // multiple * multiple)
            raise UsageError(
                f"{name} is {side}: wanted a multiple of {multiple} pixels",
                where=f"previews.{name}",
                hint=f"the nearest are {below} and {below + multiple}",
            )


@contextmanager
def _compiles() -> Iterator[None]:
    """Inside, a block that cannot be compiled here is told as a setting that does not suit."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        raise UsageError(
            f"the transformer cannot be compiled here: {str(error).partition(chr(10))[0]}",
            where="sampling.compile",
            hint="leave it out: --set sampling.compile=false; torch.compile needs a C++ compiler, on a card Triton",
        ) from error


def _load(session: _Session) -> Any:
    request, base, device = session.request, session.base, session.device
    session.on_event(Phase("load", f"{base.name} in {request.memory.base_precision} on {device}"))
    dtype = DTYPES[request.precision]
    transformer = load_transformer(base, request.memory, dtype, device, session.on_event)
    if request.sampling.compile:
        # Block by block: all blocks of a kind share what is compiled, and streamed ones come and go between them.
        transformer.compile_repeated_blocks()
    return image_pipeline(base, transformer, load_vae(base, dtype, device, request.memory.vae_tiling))


def _paths(request: SampleRequest, pictures: Sequence[Wanted]) -> list[Path]:
    """``NUMBER-NAME-seedSEED-MARKS``: prompts are numbered on from the last number in the folder."""
    there = request.output.glob("*-*") if request.output.is_dir() else ()
    numbers = [path.name.partition("-")[0] for path in there if path.suffix in ENDINGS.values()]
    first = max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1
    ending = ENDINGS[request.sampling.format]
    names = [
        "-".join(filter(None, (f"{first + each.number:02d}", each.name, f"seed{each.seed}", *each.marks)))
        for each in pictures
    ]
    return [request.output / f"{name}{ending}" for name in names]


def _step_counter(total: int, on_event: Sink) -> Callable[[], None]:
    """Turns denoising steps of single batches into progress over all of them."""
    started, done = time.monotonic(), 0

    def count() -> None:
        nonlocal done
        done += 1
        rate = done / max(time.monotonic() - started, 1e-9)
        on_event(Progress("denoise", done, total, "steps", rate, (total - done) / rate))

    return count


def _save(session: _Session, number: int, picture: Image.Image) -> None:
    path, wanted = session.paths[number], session.pictures[number]
    save(path, picture, session.told[number], session.request.sampling.quality)
    session.on_event(Picture(str(path), wanted.prompt, wanted.seed))


def _save_sheet(session: _Session, sheet: Sheet) -> Path:
    rows = [Row(line.label, line.note, [session.paths[cell] for cell in line.cells]) for line in sheet.lines]
    first = session.paths[sheet.lines[0].cells[0]].name.partition("-")[0]
    taken = len(list(session.request.output.glob(f"{first}-{sheet.mark}*.png")))
    path = session.request.output / f"{first}-{sheet.mark}{f'-{taken + 1}' if taken else ''}.png"
    told = told_of_grid([session.told[cell] for line in sheet.lines for cell in line.cells])
    save(path, draw_sheet(rows, sheet.headings, sheet.title), told, session.request.sampling.quality)
    session.on_event(Picture(str(path)))
    return path
