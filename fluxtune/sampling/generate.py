"""Sampling: every prompt with every seed, with the LoRAs and, to compare, without."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fluxtune import files
from fluxtune.environment.device import capacity_of, pick_device, warn_of_the_processor, warn_without_bf16
from fluxtune.errors import UsageError
from fluxtune.events import Phase, Progress, Sink, ignore
from fluxtune.flux.base import Base, open_base
from fluxtune.flux.denoise import Request, encode_prompt, generate, looking_ahead
from fluxtune.flux.families import Text
from fluxtune.flux.load import free_memory, image_pipeline, load_text_pipeline, load_transformer, load_vae
from fluxtune.flux.sizes import within
from fluxtune.flux.weights import DTYPES
from fluxtune.lora.files import read_metadata
from fluxtune.lora.use import spelled
from fluxtune.memory.shortage import fits_in_memory
from fluxtune.nano import EMBEDDED
from fluxtune.sampling.grid import Row, draw_grid
from fluxtune.sampling.loras import Lora, apply_to_text_encoder, apply_to_transformer, open_lora
from fluxtune.sampling.metadata import base_facts, grid_text, picture_facts, png_text
from fluxtune.sampling.request import SampleRequest

Texts = dict[str, dict[str, torch.Tensor]]
_SMALLER = "take a smaller preset (`fluxtune presets` lists them) or a smaller --size"


@dataclass(frozen=True)
class SampleResult:
    """The files made. Pictures are in the order of prompts, then seeds; to compare, each without LoRA comes first."""

    pictures: list[Path]
    grid: Path | None


@dataclass(frozen=True)
class _Column:
    """One way to make the pictures: which LoRAs act, the texts encoded with them, and what names them."""

    heading: str
    suffix: str
    loras: list[Lora]
    texts: Texts


def sample(request: SampleRequest, on_event: Sink = ignore) -> SampleResult:
    """Make the pictures of a request.

    The base model, the LoRAs and the size are checked before any weights load. Text encoders leave memory before
    the transformer comes.

    Raises:
        UsageError: a size or a LoRA's path is wrong.
        BaseModelError: the base model is missing or wrong, or a LoRA does not fit it.
        StorageError: a picture cannot be written.
        OutOfMemoryError: the model or a picture does not fit in memory.
    """
    device = pick_device(request.device)
    if request.model.base != EMBEDDED:
        warn_of_the_processor(device, request.device, on_event)
    warn_without_bf16(device, on_event)
    # Before the base model, whose download can take an hour.
    for use in request.loras:
        read_metadata(use.path)
    files.require_folder(request.output)
    base = open_base(request.model, on_event)
    capacity = capacity_of(request.memory.budget, device)
    request = replace(request, memory=within(base, request.memory, DTYPES[request.precision], capacity))
    _check_size(request, base)
    loras = [open_lora(use, base, on_event) for use in request.loras]
    with fits_in_memory("sampling", _SMALLER):
        return _paint(request, base, loras, device, on_event)


def _paint(request: SampleRequest, base: Base, loras: list[Lora], device: str, on_event: Sink) -> SampleResult:
    columns = _encode(request, base, loras, device, on_event)
    pipeline = _load(request, base, device, on_event)
    steps = request.steps or base.sampling_steps
    wanted = list(_pictures(request, steps))
    on_event(Phase("sample", _counted(len(wanted) * len(columns), "picture")))
    names = _free_names(request)
    count_step = _step_counter(len(wanted) * len(columns) * steps, on_event)
    of_base = base_facts(request, base)
    made: list[list[tuple[Path, dict[str, Any]]]] = []
    for column in columns:
        if column.loras:
            apply_to_transformer(pipeline, column.loras)
        text_of = partial(_text, column, device)
        painted = []
        for name, picture in zip(names, looking_ahead(base, pipeline, wanted, text_of), strict=True):
            path = request.output / f"{name}{column.suffix}.png"
            image = generate(base, pipeline, text_of(picture.prompt), picture, count_step)
            facts = picture_facts(request, of_base, picture, column.loras, device)
            _save(path, image, pnginfo=png_text(facts, column.loras))
            painted.append((path, facts))
        made.append(painted)
    rows = list(zip(*made, strict=True))
    grid = _save_grid(wanted, rows, [column.heading for column in columns]) if request.compare else None
    return SampleResult([path for row in rows for path, _ in row], grid)


def _text(column: _Column, device: str, prompt: str) -> Text:
    return {key: tensor.to(device) for key, tensor in column.texts[prompt].items()}


def _check_size(request: SampleRequest, base: Base) -> None:
    multiple = base.family.side_multiple
    for name, side in (("width", request.width), ("height", request.height)):
        if side < multiple or side % multiple:
            below = max(multiple, side // multiple * multiple)
            raise UsageError(
                f"{name} is {side}: wanted a multiple of {multiple} pixels",
                where=f"previews.{name}",
                hint=f"the nearest are {below} and {below + multiple}",
            )


def _encode(request: SampleRequest, base: Base, loras: list[Lora], device: str, on_event: Sink) -> list[_Column]:
    """The columns to make, with their prompts encoded; the text encoders are in memory only meanwhile."""
    on_event(Phase("encode", _counted(len(set(request.prompts)), "prompt")))
    pipeline = load_text_pipeline(base, request.memory, DTYPES[request.precision], device, on_event)
    columns = []
    texts = _encode_prompts(request, base, pipeline)
    if request.compare or not loras:
        columns.append(_Column("without LoRA", "-without" if loras else "", [], texts))
    if any(lora.changes_text for lora in loras):
        apply_to_text_encoder(pipeline, loras)
        texts = _encode_prompts(request, base, pipeline)
    if loras:
        columns.append(_Column(f"with {_heading(loras)}", "", loras, texts))
    del pipeline
    free_memory()
    return columns


def _encode_prompts(request: SampleRequest, base: Base, pipeline: Any) -> Texts:
    texts = {prompt: encode_prompt(base, pipeline, prompt) for prompt in dict.fromkeys(request.prompts)}
    return {prompt: {key: tensor.cpu() for key, tensor in text.items()} for prompt, text in texts.items()}


def _heading(loras: list[Lora]) -> str:
    return " + ".join(
        lora.name if (at := spelled(lora.scale, lora.groups)) == "1" else f"{lora.name} at {at}" for lora in loras
    )


def _load(request: SampleRequest, base: Base, device: str, on_event: Sink) -> Any:
    on_event(Phase("load", f"{base.name} in {request.memory.base_precision} on {device}"))
    dtype = DTYPES[request.precision]
    transformer = load_transformer(base, request.memory, dtype, device, on_event)
    return image_pipeline(base, transformer, load_vae(base, dtype, device, request.memory.vae_tiling))


def _pictures(request: SampleRequest, steps: int) -> Iterator[Request]:
    for prompt in request.prompts:
        for seed in request.seeds:
            yield Request(prompt, request.width, request.height, steps, request.guidance, seed)


def _free_names(request: SampleRequest) -> list[str]:
    """``NUMBER-seedSEED`` for each picture: prompts are numbered on from the last number in the folder."""
    numbers = [path.name.partition("-")[0] for path in request.output.glob("*-*.png")]
    first = max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1
    return [f"{first + index:02d}-seed{seed}" for index in range(len(request.prompts)) for seed in request.seeds]


def _step_counter(total: int, on_event: Sink) -> Callable[[int, int], None]:
    """Turns denoising steps of single pictures into progress over all of them."""
    started, done = time.monotonic(), 0

    def count(_: int, __: int) -> None:
        nonlocal done
        done += 1
        rate = done / max(time.monotonic() - started, 1e-9)
        on_event(Progress("denoise", done, total, "steps", rate, (total - done) / rate))

    return count


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _save(path: Path, image: Image.Image, **options: Any) -> None:
    files.write_with(path, lambda temporary: image.save(temporary, format="PNG", **options))


def _save_grid(wanted: list[Request], rows: list[tuple[tuple[Path, dict[str, Any]], ...]], headings: list[str]) -> Path:
    drawn = [
        Row(picture.prompt, f"seed {picture.seed}", [Image.open(path) for path, _ in row])
        for picture, row in zip(wanted, rows, strict=True)
    ]
    first, _ = rows[0][0]
    grid = first.with_name(f"{first.name.partition('-')[0]}-compare.png")
    _save(grid, draw_grid(drawn, headings), pnginfo=grid_text([facts for row in rows for _, facts in row]))
    return grid
