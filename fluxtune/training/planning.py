"""The fastest plan that fits the card: what is held how, which blocks keep what, what waits in system memory.

Settings that say ``auto`` are decided here, nothing else is touched. The order is the presets' policy: the most precise
base that fits comes first; then what a step costs, in operations that are computed again and bytes over the bus. What
was not yet measured on a card (tiles aside: other pixels) is used only where nothing else fits: activations that wait
in system memory, then streamed blocks. A plan is foretold by adding up (``block_costs.py``), and simulated as a whole
before it is believed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fluxtune.config.memory import MemoryConfig
from fluxtune.flux.sizes import choices, text_precision_within
from fluxtune.lora.targets import targeted_embedders
from fluxtune.memory.forecast import Forecast
from fluxtune.memory.offload import AHEAD
from fluxtune.memory.plan import Counts, operations_of
from fluxtune.training.block_costs import BlockCosts
from fluxtune.training.forecasts import costs_of, encoders_of, forecast_of
from fluxtune.training.foresight import SAMPLES_AHEAD
from fluxtune.training.simulation import Work

_OPERATIONS_A_SECOND, _BUS_BYTES_A_SECOND = 45e12, 12.6e9
"""Of a middle card: half of the bf16 rate of a 3090 Ti or a quarter of a 4090's; PCIe 4.0 x8 at 80 %. They only weigh
one against the other."""
_TRIES = 4
_NEARLY = 1.02
"""Of small models, what adding up foretells may be a percent or two too much."""


@dataclass(frozen=True)
class Planned:
    """A plan: the settings with nothing left to decide, and what they take.

    Attributes:
        forward: operations of the blocks' forward of one micro-batch.
        again: operations that its backward computes a second time.
    """

    work: Work
    forecast: Forecast
    forward: int
    again: int

    @property
    def memory(self) -> MemoryConfig:
        """The settings of ``[memory]``, decided."""
        return self.work.config.memory

    @property
    def fits(self) -> bool:
        """Whether the card has as much as it takes; so it is where nobody said what the card has."""
        return self.work.capacity is None or self.forecast.reserved <= self.work.capacity

    @property
    def lacking(self) -> int:
        """Bytes by which it does not fit."""
        return max(0, self.forecast.reserved - (self.work.capacity or self.forecast.reserved))


def planned(work: Work) -> Planned:
    """The fastest plan within ``work.capacity``; where none fits, one that takes little."""
    leanest = None
    for candidate in _candidates(work):
        leanest = candidate
        if work.capacity is None or foretold(candidate) <= _NEARLY * work.capacity:
            believed = _believed(candidate, work.config.memory.recompute == "auto")
            if believed.fits:
                return believed
    leanest = leanest or _leanest(work)
    return _simulated(leanest, costs_of(leanest))


def foretold(work: Work) -> int:
    """Bytes that the card must have for training, at least."""
    costs = costs_of(work)
    return costs.peak(_plan(work, costs)) - _streamed_away(work, costs)


def keeping_most(work: Work) -> Work:
    """The same with blocks that keep as much as fits, by adding up; whatever else is set stays."""
    return _keeping(work, _plan(work.with_memory(recompute="auto", keep={}), costs_of(work)))


def foretold_to_fit(work: Work) -> bool:
    """Whether there is a plan for ``work`` that fits, by adding up alone: quick, and rarely wrong."""
    return any(work.capacity is None or foretold(candidate) <= work.capacity for candidate in _candidates(work))


def _candidates(work: Work) -> Iterator[Work]:
    """Plans, the most wanted first, of those in which the encoders have room."""
    work = _with_text_precision(work)
    for relief in _reliefs(work):
        relieved = work.with_memory(**relief)
        if work.capacity is None or encoders_of(relieved).peak.bytes <= work.capacity:
            for precision in _precisions(work):
                yield from _fastest_first(relieved.with_memory(base_precision=precision))


def _leanest(work: Work) -> Work:
    """The plan that is left where not even the encoders have room."""
    *_, relief = _reliefs(work)
    leanest = _with_text_precision(work).with_memory(base_precision=_precisions(work)[-1], **relief)
    modulation, recompute = _modulations(work)[-1], work.config.memory.recompute
    return leanest.with_memory(modulation=modulation, recompute="all" if recompute == "auto" else recompute)


def _with_text_precision(work: Work) -> Work:
    memory = work.config.memory
    return work.with_memory(text_precision=text_precision_within(work.base, memory, work.dtype, work.capacity))


def _precisions(work: Work) -> Sequence[str]:
    held = work.config.memory.base_precision
    return choices(work.dtype) if held == "auto" else (held,)


def _reliefs(work: Work) -> Iterator[dict[str, Any]]:
    """Further and further ways to take less than a step that recomputes everything, where that is left to us."""
    yield {}
    if work.config.memory.recompute != "auto":
        return
    yield {"vae_tiling": True}
    yield {"vae_tiling": True, "offload_activations": True}
    if not work.config.memory.streamed_blocks:
        number = sum(work.transformer[key] for key in work.base.family.depths)
        for share in (8, 4, 2, 1):
            yield {"vae_tiling": True, "offload_activations": True, "streamed_blocks": max(1, number // share)}


def _fastest_first(work: Work) -> list[Work]:
    """With each place for the modulation weights, the plan of what blocks keep; the one that costs least first."""
    found = []
    for modulation in _modulations(work):
        settled = work.with_memory(modulation=modulation)
        costs = costs_of(settled)
        plan = _plan(settled, costs)
        seconds = operations_of(costs.kinds, plan) / _OPERATIONS_A_SECOND
        found.append((seconds + _bus_seconds(settled, costs), _keeping(settled, plan)))
    return [work for _, work in sorted(found, key=lambda each: each[0])]


def _modulations(work: Work) -> Sequence[str]:
    if work.config.memory.modulation != "auto":
        return (work.config.memory.modulation,)
    return ("card",) if targeted_embedders(work.config.lora, work.base.family) else ("card", "ahead")


def _plan(work: Work, costs: BlockCosts, room: int | None = None) -> list[Counts]:
    """What blocks keep: as set, or as little recomputation as ``room`` allows (by default all of the card)."""
    memory, capacity = work.config.memory, work.capacity if room is None else room
    if memory.recompute == "all":
        return [_counts(memory, kind, each.count) for kind, each in enumerate(costs.kinds)]
    everything = [{"everything": kind.count} for kind in costs.kinds]
    if memory.recompute == "none" or capacity is None:
        return everything
    plan = costs.fastest(capacity + _streamed_away(work, costs))
    return plan or [{"nothing": kind.count} for kind in costs.kinds]


def _counts(memory: MemoryConfig, kind: int, number: int) -> Counts:
    kept = {name: (getattr(memory.keep, name) + [0] * (kind + 1))[kind] for name in ("attention", "products")}
    kept["everything"] = (memory.keep.everything + [0] * (kind + 1))[kind]
    return {"nothing": number - sum(kept.values()), **kept}


def _keeping(work: Work, plan: Sequence[Counts]) -> Work:
    """The work with a plan written into its settings."""
    if all(counts.get("everything", 0) == sum(counts.values()) for counts in plan):
        return work.with_memory(recompute="none", keep={}, offload_activations=False)
    names = ("attention", "products", "everything")
    keep = {name: [counts.get(name, 0) for counts in plan] for name in names}
    return work.with_memory(recompute="all", keep={name: numbers for name, numbers in keep.items() if any(numbers)})


def _believed(work: Work, is_open: bool) -> Planned:
    """The plan, simulated as a whole. Where that takes more than was foretold, with so much less room; where it takes
    less, with so much more.

    Args:
        is_open: what blocks keep is ours to choose.
    """
    costs = costs_of(work)
    believed = _simulated(work, costs)
    if work.capacity is None or not is_open:
        return believed
    chosen_anew = work.with_memory(recompute="auto", keep={})
    room = work.capacity
    for _ in range(_TRIES):
        if believed.fits:
            break
        room -= believed.lacking + 2**25
        believed = _simulated(_keeping(work, _plan(chosen_anew, costs, room)), costs)
    for _ in range(_TRIES):
        room += work.capacity - believed.forecast.reserved
        more = _keeping(work, _plan(chosen_anew, costs, room))
        if more == believed.work:
            break
        tried = _simulated(more, costs)
        if not tried.fits or tried.again >= believed.again:
            break
        believed = tried
    return believed


def _simulated(work: Work, costs: BlockCosts) -> Planned:
    plan = _plan(work, costs)
    forward = sum(kind.count * each for kind, each in zip(costs.kinds, costs.operations, strict=True))
    return Planned(work, forecast_of(work), forward, operations_of(costs.kinds, plan))


def _streamed_away(work: Work, costs: BlockCosts) -> int:
    """Bytes of weights that streaming takes off the card: blocks spread evenly, less the places they take turns in."""
    number = work.config.memory.streamed_blocks
    total = sum(kind.count for kind in costs.kinds)
    away = sum(number * kind.count * each // total for kind, each in zip(costs.kinds, costs.weights, strict=True))
    return max(0, away - min(number, AHEAD + 1) * max(costs.weights, default=0))


def _bus_seconds(work: Work, costs: BlockCosts) -> float:
    """Seconds a micro-batch in which modulation weights pass over the bus."""
    passes = work.config.training.batch_size / SAMPLES_AHEAD if work.config.memory.modulation == "ahead" else 0.0
    return passes * costs.modulation / _BUS_BYTES_A_SECOND
