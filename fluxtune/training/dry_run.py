"""``train --dry-run``: everything short of loading weights, and what a run would take in memory and time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fluxtune.config.model import ModelConfig
from fluxtune.config.schema import Config
from fluxtune.dataset.batches import Batches
from fluxtune.dataset.buckets import plan as plan_buckets
from fluxtune.errors import Refusal
from fluxtune.events import Phase, Result, Sink, ignore
from fluxtune.flux.base import Base, base_in, open_base
from fluxtune.flux.known import known_base
from fluxtune.hub.locate import at_hand
from fluxtune.training.fitting import as_event
from fluxtune.training.pace import pace_of
from fluxtune.training.preflight import preflight

_UNSAID = "a picture that a captioner has yet to describe"


def dry_run(config: Config, on_event: Sink = ignore, accept: Collection[Refusal] = ()) -> dict[str, Any]:
    """What a run would do; its last event is the result.

    The configs of well-known base models are at hand, so nothing is downloaded for them.

    Returns:
        The data of the result: the plan, steps, epochs, pictures, buckets, and seconds where such a run was timed.

    Raises:
        FluxtuneError: as ``run.train``, before it loads weights.
    """
    ready = preflight(config, on_event, accept=accept, caption_bare=_unsaid, find_base=_base, plans_always=True)
    config, training = ready.config, ready.config.training
    buckets = plan_buckets([each.size for each in ready.pictures], config.dataset, ready.base.family.side_multiple)
    on_event(Phase("buckets", buckets.summary()))
    crops = config.dataset.crops * (2 if config.dataset.flip else 1)
    samples = [
        (index * crops + crop, sample.size, ready.pictures[sample.picture].repeats)
        for index, sample in enumerate(buckets.samples)
        for crop in range(crops)
    ]
    per_epoch = Batches(samples, training.batch_size, training.seed).per_epoch / training.accumulation
    assert ready.plan is not None
    seconds = pace_of(ready.plan.work, ready.device)
    plan = as_event(ready.plan)
    data = {
        "plan": {name: value for name, value in vars(plan).items()},
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
    """The base model as far as its configs, without a download where that can be."""
    named = (model.transformer, model.vae, model.text_encoder, model.text_encoder_2)
    folder = at_hand(model.base, model.revision)
    known = known_base(model.base)
    if any(named) or (folder is None and known is None):
        return open_base(model, on_event)
    return known if known is not None else base_in(folder, model.base)  # type: ignore[arg-type]


def _unsaid(bare: Sequence[Any]) -> Mapping[str, str]:
    return {item.name: _UNSAID for item, _ in bare}
