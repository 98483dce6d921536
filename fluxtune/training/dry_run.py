"""``train --dry-run``: everything short of loading weights, and what a run would take in memory and time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fluxtune.config.model import ModelConfig
from fluxtune.config.schema import Config
from fluxtune.dataset.batches import Batches
from fluxtune.environment.launch import place
from fluxtune.errors import Refusal
from fluxtune.events import Result, Sink, ignore
from fluxtune.flux.base import WITH_WEIGHTS, Base, open_base
from fluxtune.flux.known import known_base
from fluxtune.training.fitting import as_event
from fluxtune.training.pace import pace_of
from fluxtune.training.preflight import preflight
from fluxtune.training.prepare import told_buckets
from fluxtune.training.processes import dealt, tell_shares

_UNSAID = "a picture that a captioner has yet to describe"


def dry_run(config: Config, on_event: Sink = ignore, accept: Collection[Refusal] = ()) -> dict[str, Any]:
    """What a run would do; its last event is the result.

    No weights are downloaded: of a hub model the configs and tokenizers suffice, and those of well-known ones that
    decide sizes are at hand.

    Returns:
        The data of the result: the plan, the time-line of a step in bytes by category, steps, epochs, pictures,
        buckets, and seconds where such a run was timed.

    Raises:
        FluxtuneError: as ``run.train``, before it loads weights.
    """
    number = place().number
    config, _ = dealt(config, number)
    tell_shares(config, number, on_event)
    ready = preflight(config, on_event, accept=accept, caption_bare=_unsaid, find_base=_base, plans_always=True)
    config, training = ready.config, ready.config.training
    buckets = told_buckets(config, ready.pictures, ready.base.family.side_multiple, on_event)
    crops = config.dataset.crops * (2 if config.dataset.flip else 1)
    samples = [
        (index, sample.size, ready.pictures[sample.picture].repeats * crops)
        for index, sample in enumerate(buckets.samples)
    ]
    per_epoch = Batches(samples, training.batch_size, training.seed).per_epoch / training.accumulation
    assert ready.plan is not None
    seconds = pace_of(ready.plan.work, ready.device, number)
    data = {
        "plan": vars(as_event(ready.plan)),
        "timeline": [{"phase": phase, "alive": alive} for phase, alive in ready.plan.forecast.timeline],
        "base": ready.base.name,
        "device": ready.device,
        "pictures": len(ready.pictures),
        "buckets": {f"{width}x{height}": count for (width, height), count in buckets.buckets.items()},
        "steps": training.steps,
        "epochs": round(training.steps / per_epoch, 2),
        "seconds": None if seconds is None else round(seconds * training.steps, 1),
    }
    on_event(Result("train", data))
    return data


def _base(model: ModelConfig, on_event: Sink) -> Base:
    """The base model as far as its configs go."""
    known = known_base(model.base)
    if known is None or any(getattr(model, part) for part in WITH_WEIGHTS):
        return open_base(model, on_event, with_weights=False)
    return known


def _unsaid(bare: Sequence[Any]) -> Mapping[str, str]:
    return {item.name: _UNSAID for item, _ in bare}
