"""What was learned by training all of a model, as a LoRA: the nearest low-rank product to each layer's difference.

As kohya's `flux_extract_lora.py` and others do, by a singular value decomposition of ``tuned - base``, layer by layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from fluxtune.errors import UsageError, some_names
from fluxtune.events import Phase, Progress, Sink, Warning
from fluxtune.flux.base import Base, empty_part
from fluxtune.flux.stored import weight_reader
from fluxtune.flux.weights import shapes_of
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.low_rank import factors_of

_PART = "transformer"
_SAME = 1e-6
"""Relative change of a layer below which it counts as not trained."""


@dataclass(frozen=True)
class Extracted:
    """The layers, by diffusers' path, and how far each is from the difference, relative to that.

    ``beside`` are trained tensors that no LoRA holds: biases, scales of norms.
    """

    layers: dict[str, LoraLayer]
    errors: dict[str, float]
    beside: list[str] = field(default_factory=list)


@torch.no_grad()
def extract(base: Base, tuned: Base, rank: int, on_event: Sink) -> Extracted:
    """The difference of two models as a LoRA.

    Raises:
        UsageError: they have other shapes, or are the same.
        BaseModelError: one of them is damaged.
    """
    shapes = shapes_of(empty_part(base, _PART))
    if shapes != shapes_of(empty_part(tuned, _PART)):
        raise UsageError(
            f"{base.name} and {tuned.name} are of different shapes",
            where=tuned.name,
            hint="name the model that was trained, and the one that its training began with",
        )
    before, after = weight_reader(base), weight_reader(tuned)
    matrices = [name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2]
    on_event(Phase("extract", f"{len(matrices)} layers, to rank {rank}"))
    layers: dict[str, LoraLayer] = {}
    errors: dict[str, float] = {}
    for done, name in enumerate(matrices, 1):
        path, was = f"{_PART}.{name}", before(f"{_PART}.{name}").float()
        change = after(path).float() - was
        if float(change.norm()) > _SAME * float(was.norm()):
            layers[path], errors[path] = factors_of(change, rank)
        on_event(Progress("extract", done, len(matrices), "layers"))
    if not layers:
        raise UsageError("the two models are the same", where=tuned.name, hint="name a model that was trained further")
    beside = [
        name
        for name, shape in shapes.items()
        if len(shape) != 2 and not torch.equal(*(read(f"{_PART}.{name}").float() for read in (before, after)))
    ]
    if beside:
        on_event(
            Warning(
                f"{len(beside)} biases and scales of norms were trained too, which no LoRA holds: {some_names(beside)}",
                where=tuned.name,
            )
        )
    return Extracted(layers, errors, beside)
