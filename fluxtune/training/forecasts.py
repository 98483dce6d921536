"""What a run takes in memory: each part of it simulated once, and kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fluxtune.flux.kept_simulations import kept
from fluxtune.memory.forecast import Forecast, forecast_from
from fluxtune.training.block_costs import BlockCosts, block_costs, costs_from
from fluxtune.training.simulation import Work, foresee_encoders, foresee_training


def forecast_of(work: Work) -> Forecast:
    """All phases of a run, simulated once."""
    encoders, training = encoders_of(work), training_of(work)
    return Forecast((*encoders.phases, *training.phases), training.timeline, training.system)


def encoders_of(work: Work) -> Forecast:
    """``simulation.foresee_encoders``, kept."""
    decides = {
        "text_precision": work.config.memory.text_precision,
        "vae_tiling": work.config.memory.vae_tiling,
        "precision": str(work.dtype),
        "size": work.size,
        "as_cuda": work.as_cuda,
        "capacity": work.capacity,
    }
    return kept("encoders", work.base, decides, lambda: foresee_encoders(work), forecast_from)


def training_of(work: Work) -> Forecast:
    """``simulation.foresee_training``, kept."""
    return kept("training", work.base, _deciding(work), lambda: foresee_training(work), forecast_from)


def costs_of(work: Work) -> BlockCosts:
    """``block_costs``, kept."""
    alike = replace(
        work.with_memory(recompute="all", keep={}, streamed_blocks=0, vae_tiling=False),
        capacity=None,
        preview=None,
        depths=None,
    )
    return kept("blocks", work.base, _deciding(alike), lambda: block_costs(alike), costs_from)


def _deciding(work: Work) -> dict[str, Any]:
    """The settings that decide what training takes."""
    config, training = work.config, work.config.training
    return {
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
