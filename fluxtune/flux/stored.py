"""Single weights of a base model, read from its files where they are wanted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from fluxtune.flux.base import Base, empty_part
from fluxtune.flux.single_files import stream
from fluxtune.flux.weights import Scaled, Weight, shapes_of, wrong_weights


def plain(weight: Weight) -> torch.Tensor:
    """A weight in the precision it is stored in; a scaled one in float32."""
    return weight.to("cpu", torch.float32) if isinstance(weight, Scaled) else weight


def weight_reader(base: Base, part: str = "transformer") -> Callable[[str], torch.Tensor]:
    """A function: name of a tensor, with the part in front, or a layer's for its weight -> the tensor as it is stored.

    Raises:
        BaseModelError: the base model's files are missing or damaged; so does the function, for a layer that is not
            there.
    """
    shapes, names = shapes_of(empty_part(base, part)), base.family.names[part]
    places: dict[str, Path] = {}
    for file in base.weight_files(part):
        places |= dict.fromkeys((name for name, _ in stream([file], names, shapes, content=False)), file)

    def read(path: str) -> torch.Tensor:
        name = path.removeprefix(f"{part}.")
        wanted = name if name in places else f"{name}.weight"
        if wanted not in places:
            raise wrong_weights(base.name, f"the model has no layer {path}", "name the model that the LoRA is for")
        return plain(next(weight for name, weight in stream([places[wanted]], names, shapes) if name == wanted))

    return read
