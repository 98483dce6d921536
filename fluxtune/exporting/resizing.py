"""LoRA files cut down: to a rank, to a share of what each layer does, or to a size of file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fluxtune.errors import UsageError
from fluxtune.events import Progress, Sink
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.low_rank import compressed, rank_of, singular_values


@dataclass(frozen=True)
class Size:
    """What to cut down to; one of them is given.

    Attributes:
        rank: of every layer, at most.
        energy: share of the squared singular values of every layer that is kept, in (0, 1).
        bytes: of all weights together: what is kept are the largest singular values for the bytes they take.
        bytes_each: that a value of the file takes, for ``bytes``.
    """

    rank: int | None = None
    energy: float | None = None
    bytes: int | None = None
    bytes_each: int = 2


def resized(
    layers: Mapping[str, LoraLayer], size: Size, rows: Mapping[str, int], on_event: Sink
) -> tuple[dict[str, LoraLayer], dict[str, float]]:
    """The layers cut down, and the relative error of each that was.

    Args:
        rows: of each layer's B in the file, where layers may be fused.

    Raises:
        UsageError: not even rank 1 of every layer would fit the size.
    """
    ranks = _ranks_within(layers, size, rows) if size.bytes is not None else {}
    made, errors = {}, {}
    for done, (path, layer) in enumerate(layers.items(), 1):
        rank = ranks.get(path, size.rank)
        allowed = 0.0 if size.energy is None else (1.0 - size.energy) ** 0.5
        if rank is not None and rank >= rank_of(layer):
            made[path] = layer
        else:
            made[path], errors[path] = compressed(layer, rank, allowed)
        on_event(Progress("resize", done, len(layers), "layers"))
    return made, errors


def _ranks_within(layers: Mapping[str, LoraLayer], size: Size, rows: Mapping[str, int]) -> dict[str, int]:
    """The rank of each layer with which all fit, and least is lost: each has its largest singular value at least."""
    assert size.bytes is not None
    cost = {path: (layer.a.shape[1] + rows[path]) * size.bytes_each for path, layer in layers.items()}
    left = size.bytes - sum(cost.values())
    if left < 0:
        raise UsageError(
            f"rank 1 of every layer takes {sum(cost.values()) / 2**20:.1f} MiB already",
            where="--size",
            hint="give a larger size, or another --dtype",
        )
    values = {path: singular_values(layer) for path, layer in layers.items()}
    ranks = dict.fromkeys(layers, 1)
    candidates = sorted(
        ((float(value) ** 2 / cost[path], path) for path in layers for value in values[path][1:] if value > 0),
        key=lambda each: -each[0],
    )
    full: set[str] = set()
    for _, path in candidates:
        if path in full:
            continue
        if cost[path] > left:
            full.add(path)  # a later value of a layer is never kept without those before it
            continue
        ranks[path] += 1
        left -= cost[path]
    return ranks
