"""Whether a run fits the card, known before weights load: what is left open is decided, what cannot fit is refused."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from fluxtune.config.memory import MemoryConfig
from fluxtune.config.schema import Config
from fluxtune.dataset.images import Size
from fluxtune.environment.device import capacity_of
from fluxtune.errors import OutOfMemoryError, Refusal
from fluxtune.events import Phase, Plan, Sink, Warning
from fluxtune.flux.base import Base
from fluxtune.flux.sizes import choices
from fluxtune.training.planning import Planned, foretold_to_fit, planned
from fluxtune.training.simulation import Work

_CHANGES = 3


@dataclass(frozen=True)
class Change:
    """Something to set that makes a run fit: as an argument of the command line, and what it means."""

    argument: str
    meaning: str


def fitted(
    config: Config,
    base: Base,
    device: str,
    sizes: Iterable[Size],
    accept: Collection[Refusal],
    on_event: Sink,
    always: bool = False,
    free: int | None = None,
) -> tuple[Config, Planned | None]:
    """The settings with nothing left open in ``[memory]``, and the plan where one was made.

    Without a graphics card and without ``memory.budget`` there is nothing to fit into: nothing is recomputed then.

    Args:
        sizes: (width, height) in pixels of all that is trained on.
        accept: with ``Refusal.MEMORY``, what does not fit is tried all the same.
        always: plan where there is nothing to fit into, too.
        free: bytes that are free on the fullest of several cards.

    Raises:
        OutOfMemoryError: there is no plan that fits, and that was not accepted.
    """
    work = work_of(config, base, device, sizes, free)
    if work.capacity is None and not always:
        return _without_limit(work).config, None
    on_event(Phase("plan", "simulating what the run takes in memory"))
    plan = planned(work if work.capacity is not None else _without_limit(work))
    on_event(as_event(plan))
    if not plan.fits:
        refusal = _refusal(work, plan)
        if Refusal.MEMORY not in accept:
            raise refusal
        on_event(Warning(refusal.message, where="memory"))
    return plan.work.config, plan


def as_event(plan: Planned) -> Plan:
    """The plan as scripts read it."""
    forecast = plan.forecast
    phases = [{"phase": each.phase, "alive": each.alive, "reserved": each.reserved} for each in forecast.phases]
    memory = plan.memory.model_dump(mode="json")
    share = round(plan.again / plan.forward, 3) if plan.forward else 0.0
    system = {name: size for name, size in (forecast.system or {}).items() if size}
    return Plan(summary(plan), memory, plan.fits, plan.work.capacity, forecast.reserved, phases, system, share)


def work_of(config: Config, base: Base, device: str, sizes: Iterable[Size], free: int | None = None) -> Work:
    """What is to be planned: the largest of the pictures, on the card or the one that is imagined."""
    side = config.dataset.resolution[0]
    previews = config.previews
    capacity = capacity_of(config.memory.budget, device, free=free)
    return Work(
        config=config,
        base=base,
        size=max(sizes, key=lambda size: size[0] * size[1]),
        preview=(previews.width or side, previews.height or side) if previews.every else None,
        as_cuda=device == "cuda" or config.memory.budget is not None,
        capacity=capacity,
    )


def summary(plan: Planned) -> str:
    """``int8 base, modulation ahead, 15 of 57 blocks keep products; 14.6 GiB of 15.4 at most``"""
    number = sum(plan.work.transformer[key] for key in plan.work.base.family.depths)
    of = "" if plan.work.capacity is None else f" of {_gib(plan.work.capacity)}"
    peak = plan.forecast.peak
    return f"{wording(plan.memory, number)}; at most {_gib(peak.bytes)}{of} GiB ({peak.phase})"


def wording(memory: MemoryConfig, number: int) -> str:
    """Settings with nothing left open, for people; ``number`` of blocks in all."""
    parts = [f"{memory.base_precision} base"]
    if memory.modulation == "ahead":
        parts.append("modulation computed ahead")
    kept = {name: sum(numbers) for name, numbers in vars(memory.keep).items() if sum(numbers)}
    if memory.recompute == "none":
        parts.append("nothing recomputed")
    elif not kept:
        parts.append(f"all {number} blocks recomputed")
    else:
        parts.append(f"of {number} blocks " + ", ".join(f"{count} keep {name}" for name, count in kept.items()))
    if memory.offload_activations:
        parts.append("activations wait in system memory")
    if memory.streamed_blocks:
        parts.append(f"{memory.streamed_blocks} blocks streamed")
    if memory.vae_tiling:
        parts.append("VAE in tiles")
    return ", ".join(parts)


def nearest_changes(work: Work) -> list[Change]:
    """What would make the run fit, the least of changes first: each alone, or with those before where none does."""
    found: list[Change] = []
    together: list[Change] = []
    all_of_them = work
    for change, changed in _changes(work):
        if len(found) == _CHANGES:
            break
        if foretold_to_fit(changed(work)):
            found.append(change)
        all_of_them = changed(all_of_them)
        together.append(change)
        if not found and len(together) > 1 and foretold_to_fit(all_of_them):
            arguments = " ".join(each.argument for each in together)
            found.append(Change(arguments, ", ".join(each.meaning for each in together)))
    return found


def _refusal(work: Work, plan: Planned) -> OutOfMemoryError:
    assert work.capacity is not None
    peak = plan.forecast.peak
    holders = sorted(peak.alive.items(), key=lambda each: -each[1])[:3]
    changes = nearest_changes(work)
    ways = "; ".join(f"{each.argument} ({each.meaning})" for each in changes)
    return OutOfMemoryError(
        f"this run takes {_gib(plan.forecast.reserved)} GiB of graphics memory while it does {peak.phase!r}, and "
        f"{_gib(work.capacity)} GiB are there: " + ", ".join(f"{name} {_gib(size)}" for name, size in holders),
        where="memory",
        hint=f"what would fit: {ways}" if ways else "take a smaller base model or picture size",
    )


def _changes(work: Work) -> Iterator[tuple[Change, Callable[[Work], Work]]]:
    """Changes that take less, the one that costs least first."""
    memory, training = work.config.memory, work.config.training
    if memory.recompute != "auto":
        yield _memory("recompute", "auto", "recompute as much as is needed", keep={})
    if memory.modulation == "card":
        yield _memory("modulation", "auto", "modulation weights in system memory")
    for precision in choices(work.dtype)[1:]:
        if memory.base_precision not in ("auto", precision, "nf4"):
            yield _memory("base_precision", precision, f"the base in {precision}")
    if memory.text_precision not in ("auto", "nf4"):
        yield _memory("text_precision", "auto", "text encoders as precisely as fits")
    if training.batch_size > 1:
        smaller = training.model_copy(update={"batch_size": 1})
        yield (
            Change("--batch-size 1", "one picture at a time"),
            lambda each: replace(each, config=each.config.model_copy(update={"training": smaller})),
        )
    for side in (768, 512):
        if work.size[0] * work.size[1] > side * side * 1.1:
            yield Change(f"--resolution {side}", f"{side} px"), lambda each, side=side: _smaller(each, side)  # type: ignore[misc]
    if not memory.streamed_blocks:
        number = sum(work.transformer[key] for key in work.base.family.depths)
        yield _memory("streamed_blocks", number, "all blocks streamed from system memory")


def _memory(name: str, value: Any, meaning: str, **more: Any) -> tuple[Change, Callable[[Work], Work]]:
    return Change(f"--set memory.{name}={value}", meaning), lambda work: work.with_memory(**{name: value}, **more)


def _smaller(work: Work, side: int) -> Work:
    multiple = work.base.family.side_multiple
    factor = side / (work.size[0] * work.size[1]) ** 0.5
    width, height = (max(multiple, int(length * factor) // multiple * multiple) for length in work.size)
    previews = work.config.previews
    preview = (previews.width or side, previews.height or side) if work.preview else None
    return replace(work, size=(width, height), preview=preview)


def _without_limit(work: Work) -> Work:
    """Everything that is open as it is fastest where memory is no matter."""
    memory = work.config.memory
    decided: dict[str, Any] = {}
    if memory.base_precision == "auto":
        decided["base_precision"] = choices(work.dtype)[0]
    if memory.text_precision == "auto":
        decided["text_precision"] = choices(work.dtype)[0]
    if memory.modulation == "auto":
        decided["modulation"] = "card"
    if memory.recompute == "auto":
        decided["recompute"] = "none"
    return work.with_memory(**decided)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
