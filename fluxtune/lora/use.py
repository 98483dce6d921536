"""A LoRA that is asked for: ``FILE``, ``FILE:0.8``, and by group of layers ``FILE:double=0.5,single=1``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from fluxtune.config.lora import LayerGroup
from fluxtune.errors import UsageError
from fluxtune.runs import lora_in

if TYPE_CHECKING:
    from fluxtune.lora.adapter import LoraLayer

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|[-+]?(?:nan|inf(?:inity)?)"
_SCALE = re.compile(rf"(?:(?P<group>[\w.*?!\[\]-]+)=)?(?P<number>{_NUMBER})", re.IGNORECASE)
_PATTERN = re.compile(r"[*?\[.]")


@dataclass(frozen=True)
class LoraUse:
    """A LoRA file, and how strongly it acts: 1 as it was trained, 0 not at all.

    Attributes:
        groups: (group or pattern of layers, its own scale), which multiplies ``scale`` for those layers.
    """

    path: Path
    scale: float = 1.0
    groups: tuple[tuple[str, float], ...] = ()

    def acting(self, layers: Mapping[str, LoraLayer], groups: Mapping[str, tuple[str, ...]]) -> dict[str, LoraLayer]:
        """The layers as they act, each at its scale.

        Args:
            layers: by diffusers' path, with the part of the model in front.
            groups: the family's ``lora_groups``.
        """
        return {path: replace(layer, scale=layer.scale * self._factor(path, groups)) for path, layer in layers.items()}

    def _factor(self, path: str, groups: Mapping[str, tuple[str, ...]]) -> float:
        layer, scale = path.removeprefix("transformer."), self.scale
        for group, own in self.groups:
            if any(fnmatchcase(layer, pattern) for pattern in groups.get(group, (group,))):
                scale *= own
        return scale


def lora_use(text: str, where: str = "--lora") -> LoraUse:
    """Read ``FILE[:SCALE]``, where ``FILE`` may be a run's or a checkpoint's folder.

    ``SCALE`` is a number, or numbers with a comma between them, each for the layers of a group (``single=0.5``) or of a
    pattern of layer names (``*.attn.to_q=0``).

    Raises:
        UsageError: a scale is no finite number, there is no such group, or the folder is no run.
        StorageError: the run has no result yet.
    """
    name, _, tail = text.rpartition(":")
    if not name or Path(text).exists():
        return LoraUse(lora_in(Path(text)))
    matches = [_SCALE.fullmatch(each.strip()) for each in tail.split(",")]
    if not all(matches):
        if not Path(name).exists():
            return LoraUse(Path(text))  # a path with a colon in it, which is not there
        raise _wrong(f"{tail!r} is no scale: wanted a number, or groups with numbers", name, where)
    scale, groups = 1.0, []
    for match in filter(None, matches):
        group, number = match["group"], float(match["number"])
        if not math.isfinite(number):
            raise _wrong(f"{match[0]!r} is no scale: wanted a finite number", name, where)
        if group is None:
            scale *= number
        elif group in get_args(LayerGroup) or _PATTERN.search(group):
            groups.append((group, number))
        else:
            known = ", ".join(get_args(LayerGroup))
            raise _wrong(f"{group!r} is no group of layers: there are {known}, and patterns of names", name, where)
    return LoraUse(lora_in(Path(name)), scale, tuple(groups))


def spelled(scale: float, groups: tuple[tuple[str, float], ...]) -> str:
    """A scale as it is written: ``0.8``, ``0.8,single=0.5``."""
    return ",".join([f"{scale:g}", *(f"{group}={own:g}" for group, own in groups)])


def _wrong(message: str, name: str, where: str) -> UsageError:
    return UsageError(message, where=where, hint=f"for instance {name}:0.8, or {name}:double=0.5,single=1")
