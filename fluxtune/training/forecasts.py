"""Simulations that were done before are not done again: what they found is kept, by all that decides it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from fluxtune.dataset.cache import cache_folder, key_of
from fluxtune.environment.device import versions
from fluxtune.errors import StorageError
from fluxtune.files import write_text
from fluxtune.memory.forecast import Forecast, forecast_from
from fluxtune.training.block_costs import BlockCosts, block_costs, costs_from
from fluxtune.training.simulation import Work, foresee_encoders, foresee_training

_FORMAT = 3
"""Raised when the simulation itself changes."""

T = TypeVar("T")


def forecast_of(work: Work) -> Forecast:
    """All phases of a run, simulated once."""
    encoders, training = encoders_of(work), training_of(work)
    return Forecast((*encoders.phases, *training.phases), training.timeline, training.system)


def encoders_of(work: Work) -> Forecast:
    """``simulation.foresee_encoders``, kept."""
    memory = work.config.memory
    decides = (memory.text_precision, memory.vae_tiling, str(work.dtype), *work.size, work.capacity or 0, work.as_cuda)
    return _kept("encoders", work, decides, foresee_encoders, forecast_from)


def training_of(work: Work) -> Forecast:
    """``simulation.foresee_training``, kept."""
    return _kept("training", work, _deciding(work), foresee_training, forecast_from)


def costs_of(work: Work) -> BlockCosts:
    """``block_costs``, kept."""
    alike = replace(
        work.with_memory(recompute="all", keep={}, streamed_blocks=0, vae_tiling=False),
        capacity=None,
        preview=None,
        depths=None,
    )
    return _kept("blocks", alike, _deciding(alike), block_costs, costs_from)


def _deciding(work: Work) -> tuple[Any, ...]:
    """The settings that decide what training takes."""
    config, training = work.config, work.config.training
    settings = {
        "memory": config.memory.model_dump(exclude={"budget", "text_precision", "cache_quantized"}),
        "lora": config.lora.model_dump(exclude={"init_from"}),
        "batch": training.batch_size,
        "optimizer": training.optimizer,
        "precision": training.precision,
        "averages": training.ema_decay > 0,
        "preserves": training.preservation.method != "none",
        "saved": config.checkpoints.dtype,
        "sizes": (work.size, work.preview, work.depths),
        "as_cuda": work.as_cuda,
        "capacity": work.capacity,
    }
    return (json.dumps(settings, sort_keys=True),)


def _kept(
    kind: str,
    work: Work,
    decides: tuple[Any, ...],
    simulate: Callable[[Work], T],
    read: Callable[[dict[str, Any]], T],
) -> T:
    libraries = json.dumps(versions(), sort_keys=True)
    key = key_of("forecast", _FORMAT, kind, libraries, _model(work), *map(str, decides))
    file = cache_folder() / "forecasts" / f"{key}.json"
    # What is missing or damaged is made anew.
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        return read(json.loads(file.read_text(encoding="utf-8")))
    made = simulate(work)
    # A cache that cannot be written costs time, and nothing else.
    with suppress(StorageError):
        write_text(file, json.dumps(made.as_record()))  # type: ignore[attr-defined]
    return made


def _model(work: Work) -> bytes:
    """What the configs of the base model say, which decides sizes."""
    parts = ("transformer", "vae", *work.base.text_encoders)
    configs = [(work.base.folder / part / "config.json").read_bytes() for part in parts]
    return b"\n".join([*configs, str(work.base.text_tokens).encode()])
