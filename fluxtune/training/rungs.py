"""Ways to hold a model that is loaded in less memory, each less than the one before; none changes what is learned.

blocks keep less -> every block is recomputed -> block inputs wait in system memory -> blocks are streamed
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fluxtune.config.memory import KeepConfig, MemoryConfig
from fluxtune.training.planning import foretold, keeping_most
from fluxtune.training.simulation import Work

_SHARES = (8, 4, 2, 1)
_KEPT = ("attention", "products", "everything")


def lower_rungs(memory: MemoryConfig, blocks: Sequence[int]) -> list[MemoryConfig]:
    """All that take less than ``memory``, the one that costs least first.

    Args:
        blocks: how many of each kind the model has.
    """
    rungs, now = [], _explicit(memory, blocks)
    for change in _changes(now, sum(blocks)):
        lower = now.model_copy(update=change)
        if lower != now:
            rungs.append(lower)
            now = lower
    return rungs


def rungs_that_fit(work: Work, blocks: Sequence[int]) -> list[MemoryConfig]:
    """Of the same, those that are foretold to fit ``work.capacity``, and the last; first of all blocks that keep as
    much as fits, where that is less than they keep now."""
    rungs = lower_rungs(work.config.memory, blocks)
    now, fastest = foretold(work), keeping_most(work)
    fitting = [fastest.config.memory] if foretold(fastest) < now else []
    for rung in rungs:
        need = foretold(work.with_memory(**rung.model_dump()))
        if work.capacity is None or need <= work.capacity or rung == rungs[-1]:
            fitting.append(rung)
    return fitting


def _explicit(memory: MemoryConfig, blocks: Sequence[int]) -> MemoryConfig:
    """The same where nothing is recomputed, as what blocks keep."""
    if memory.recompute != "none":
        return memory
    keep = KeepConfig(everything=list(blocks))
    return memory.model_copy(update={"recompute": "all", "keep": keep, "offload_activations": False})


def _changes(memory: MemoryConfig, number: int) -> Iterator[dict[str, Any]]:
    """What to change of ``memory``, one after the other."""
    for most in ("products", "attention", "nothing"):
        yield {"keep": _at_most(memory.keep, most)}
    yield {"offload_activations": True}
    for share in _SHARES:
        yield {"streamed_blocks": max(memory.streamed_blocks, number // share)}


def _at_most(keep: KeepConfig, most: str) -> KeepConfig:
    """Blocks that keep more than ``most`` keep that."""
    allowed = _KEPT[: _KEPT.index(most) + 1] if most in _KEPT else ()
    kinds = max(len(getattr(keep, name)) for name in _KEPT)
    counts = {name: [*getattr(keep, name), *[0] * kinds][:kinds] for name in _KEPT}
    kept = {name: counts[name] for name in allowed[:-1]}
    if allowed:
        kept[most] = [
            sum(numbers) for numbers in zip(*(counts[name] for name in _KEPT[len(allowed) - 1 :]), strict=True)
        ]
    return KeepConfig(**{name: numbers for name, numbers in kept.items() if any(numbers)})
