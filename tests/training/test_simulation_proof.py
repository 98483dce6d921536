"""The simulator against an independent record of what a real run allocates on a processor: the profiler's."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_flux import small_flux
from torch.profiler import ProfilerActivity, profile, record_function

from fluxtune import rng
from fluxtune.config.schema import Config
from fluxtune.flux.base import Base
from fluxtune.flux.load import load_transformer
from fluxtune.flux.modulation import RowLinear
from fluxtune.flux.weights import DTYPES
from fluxtune.lora.adapter import adapter_parameters, attach
from fluxtune.memory.activations import ActivationOffload
from fluxtune.memory.forecast import Forecast
from fluxtune.memory.ledger import Ledger
from fluxtune.training.ema import MovingAverage
from fluxtune.training.load import learner_of
from fluxtune.training.simulation import STEP, Work, foresee_training
from fluxtune.training.step import MicroBatch, clip, learn, preserve, update

SIDE = 256
BATCH = 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return small_flux(tmp_path_factory.mktemp("small") / "flux")


@pytest.fixture(autouse=True)
def system_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor, what waits in system memory is in the record, too; small activations go there as large ones."""
    monkeypatch.setattr(Ledger, "exclude", lambda ledger, memory: ledger.claim(memory, "system memory"))
    monkeypatch.setattr(ActivationOffload, "smallest", 2**12)


def settings(
    precision: str,
    base_precision: str,
    targets: str,
    ema: float = 0.0,
    dropout: float = 0.0,
    preservation: str = "none",
    **memory: Any,
) -> Config:
    return Config.model_validate(
        {
            "training": {
                "precision": precision,
                "optimizer": "adamw",
                "batch_size": BATCH,
                "ema_decay": ema,
                "preservation": {"method": preservation},
            },
            "memory": {"base_precision": base_precision, **memory},
            "lora": {"rank": 16, "targets": targets, "dropout": dropout},
        }
    )


def recorded_peak(config: Config, base: Base, trace: Path) -> int:
    """Bytes at the peak of two steps, by the profiler's record of every allocation since before the weights came; less
    those of modulation weights off the card."""
    gc.collect()  # what other tests left would count as freed
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        held = _train(config, base)
    record.export_chrome_trace(str(trace))
    everything = json.loads(trace.read_text())["traceEvents"]
    # While weights load, the record counts the file that they are mapped from, too.
    loaded = next(event["ts"] for event in everything if event["name"] == "steps")
    events = [event for event in everything if event["name"] == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda each: each["ts"]):
        now += event["args"]["Bytes"]
        peak = max(peak, now) if event["ts"] > loaded else 0
    assert len(events) > 1000
    return peak - held


def _train(config: Config, base: Base) -> int:
    dtype = DTYPES[config.training.precision]
    transformer = load_transformer(base, config.memory, dtype, "cpu")
    attach(transformer, config.lora, base.family, rng.derive(1, "adapter"))
    learner = learner_of(transformer, config, base.family, base.embeds_guidance, "cpu")
    average = MovingAverage(adapter_parameters(transformer), config.training.ema_decay)
    with record_function("steps"):
        for _ in range(2):
            shape = (BATCH, 64, SIDE // 16, SIDE // 16)
            text = base.family.blank_text(dict(transformer.config), BATCH, base.text_tokens)
            text = {name: tensor.to(dtype) for name, tensor in text.items()}
            weights = torch.ones(BATCH, 1, *shape[2:])
            batch = MicroBatch(torch.randn(shape), torch.randn(shape), torch.full([BATCH], 0.5), text, weights)
            learn(learner, batch)
            if config.training.preservation.method != "none":
                preserve(learner, batch, 1.0)
            clip(learner)
            update(learner)
            average.update()
    layers = [layer for layer in transformer.modules() if isinstance(layer, RowLinear)]
    return sum(held.nbytes for layer in layers for held in (layer.held, layer.held_bias) if held is not None)


PLANS = [
    settings("fp32", "fp32", "all-linear", recompute="none"),
    settings("fp32", "fp32", "attention", recompute="all", keep={"products": [1, 2]}),
    settings("bf16", "bf16", "attention", recompute="none", ema=0.9),
    settings("bf16", "bf16", "attention", recompute="all", keep={"attention": [2, 1], "everything": [0, 1]}),
    settings("fp32", "nf4", "all-linear", recompute="all", streamed_blocks=5, offload_activations=True),
    settings("bf16", "fp8", "attention+mlp", recompute="none", modulation="ahead", dropout=0.1, preservation="output"),
    settings("bf16", "int8", "attention", recompute="none", streamed_blocks=4, modulation="ahead"),
]
SLOW_PLANS = [
    settings("fp32", "fp32", "attention", recompute="all"),
    settings("fp32", "fp32", "attention", recompute="none", streamed_blocks=4, preservation="output"),
    settings("fp32", "fp32", "all-linear", recompute="all", keep={"products": [2, 3]}, dropout=0.1),
    settings("bf16", "bf16", "all-linear", recompute="all"),
    settings("bf16", "bf16", "attention+mlp", recompute="all", modulation="ahead"),
    settings("bf16", "bf16", "attention+mlp", recompute="none", dropout=0.1),
    settings("bf16", "bf16", "all-linear", recompute="all", keep={"products": [1, 1]}, offload_activations=True),
    settings("bf16", "bf16", "attention", recompute="all", streamed_blocks=5, offload_activations=True),
    settings("fp32", "nf4", "attention", recompute="none"),
    settings("bf16", "nf4", "attention", recompute="all", dropout=0.1),
    settings("fp32", "int8", "attention", recompute="none", modulation="ahead"),
    settings("fp32", "int8", "all-linear", recompute="none"),
    settings("fp32", "int8", "attention", recompute="all", keep={"products": [2, 3]}),
    settings("bf16", "int8", "attention", recompute="all", offload_activations=True),
    settings("fp32", "fp8", "attention", recompute="none", preservation="output"),
    settings("bf16", "fp8", "attention", recompute="all", streamed_blocks=5, modulation="ahead"),
    settings("bf16", "int8-weights", "attention+mlp", recompute="none"),
    settings("fp32", "int8-weights", "attention", recompute="all", keep={"products": [2, 3]}, streamed_blocks=3),
]


@pytest.mark.parametrize(
    "config",
    [*PLANS, *(pytest.param(plan, marks=pytest.mark.slow) for plan in SLOW_PLANS)],
    ids=range(len(PLANS) + len(SLOW_PLANS)),
)
def test_the_peak_of_a_run_is_foretold_within_one_percent(config: Config, base: Base, tmp_path: Path) -> None:
    forecast = foresee_training(Work(config, base, (SIDE, SIDE), None, as_cuda=False))
    foreseen = max(phase.bytes for phase in forecast.phases if phase.phase in STEP)
    assert foreseen == pytest.approx(recorded_peak(config, base, tmp_path / "trace.json"), rel=0.01)


def test_recomputing_holds_less_and_the_same_weights(base: Base) -> None:
    none, everything = (
        _backward(
            foresee_training(Work(settings("fp32", "fp32", "attention", recompute=how), base, (SIDE, SIDE), None))
        )
        for how in ("none", "all")
    )
    assert everything["activations"] < 0.6 * none["activations"]
    assert everything["weights"] == none["weights"]


def _backward(forecast: Forecast) -> dict[str, int]:
    return next(phase.alive for phase in forecast.phases if phase.phase == STEP[1])
