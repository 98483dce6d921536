"""How other programs call the layers of a family's models: the published checkpoint's names, with diffusers' beside."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property


@dataclass(frozen=True)
class Layers:
    """The layers that one name of a file stands for.

    Attributes:
        name: the checkpoint's or diffusers' own, with dots.
        parts: diffusers' paths with their part of the model in front, ``transformer.transformer_blocks.0.attn.to_q``;
            the rows of the file's layer are shared out among them in this order.
        swapped: whether the halves of the rows stand in the other order.
    """

    name: str
    parts: tuple[str, ...]
    swapped: bool = False


@dataclass(frozen=True)
class LayerNames:
    """How the layers of a family that a LoRA can change are called.

    Attributes:
        layers: part of the model -> layer of the published checkpoint -> layers of diffusers; a block's number is
            ``{}``.
        read_only: the same, of names that are only read.
        swapped: layers of diffusers whose halves stand in the other order in the checkpoint.
        widths: layers of diffusers -> rows, as a multiple of the width of their input, where that is not 1; for layers
            that are fused in the checkpoint.
    """

    layers: Mapping[str, Mapping[str, tuple[str, ...]]]
    read_only: Mapping[str, Mapping[str, tuple[str, ...]]]
    swapped: tuple[str, ...]
    widths: Mapping[str, int]

    def found(self, part: str, name: str) -> Layers | None:
        """The layers that a name means, whatever stands between nested names; None where there is no such layer."""
        plain = name.replace(".", "_")
        for pattern, own, to in self._patterns.get(part, []):
            if match := pattern.fullmatch(plain):
                numbers = match.groups()
                paths = tuple(each.format(*numbers) for each in to)
                swapped = own not in to and paths[0] in self.swapped
                return Layers(own.format(*numbers), tuple(f"{part}.{path}" for path in paths), swapped)
        return None

    def fused(self, path: str) -> Layers:
        """The checkpoint's layer that holds a layer of diffusers (its path with the part of the model in front)."""
        part, _, layer = path.partition(".")
        for name, to in self.layers[part].items():
            for each in to:
                if match := _pattern(each).fullmatch(layer.replace(".", "_")):
                    numbers = match.groups()
                    parts = tuple(f"{part}.{one.format(*numbers)}" for one in to)
                    return Layers(name.format(*numbers), parts, layer in self.swapped)
        raise KeyError(path)

    def width(self, path: str) -> int:
        """Rows of a layer as a multiple of the width of its input."""
        skeleton = re.sub(r"\.\d+\.", ".{}.", path.partition(".")[2], count=1)
        return self.widths.get(skeleton, 1)

    @cached_property
    def _patterns(self) -> dict[str, list[tuple[re.Pattern[str], str, tuple[str, ...]]]]:
        """For each part: what matches a name, the name, and the layers of diffusers."""
        found: dict[str, list[tuple[re.Pattern[str], str, tuple[str, ...]]]] = {}
        for table in (self.layers, self.read_only):
            for part, layers in table.items():
                rows = found.setdefault(part, [])
                for name, to in layers.items():
                    rows += [(_pattern(name), name, to), *((_pattern(each), each, (each,)) for each in to)]
        return found


@cache
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name.replace(".", "_")).replace(r"\{\}", r"(0|[1-9][0-9]*)"))
