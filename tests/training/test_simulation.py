"""A run's phases, simulated: of the embedded model, and of the true sizes in a fraction of their depth."""

from __future__ import annotations

from typing import Any

import pytest

from fluxtune.config.model import ModelConfig
from fluxtune.config.schema import Config
from fluxtune.flux.base import Base, open_base
from fluxtune.flux.known import known_base
from fluxtune.memory.forecast import Forecast, PhasePeak, forecast_from
from fluxtune.training.forecasts import forecast_of
from fluxtune.training.simulation import STEP, Work, foresee_training

GIB = 2**30
ALL = ["encode captions", "encode pictures", "load", *STEP, "preview"]


@pytest.fixture(scope="module")
def nano() -> Base:
    return open_base(ModelConfig(base="nano"))


@pytest.fixture(scope="module")
def dev() -> Base:
    base = known_base("black-forest-labs/FLUX.1-dev")
    assert base is not None
    return base


def config(memory: dict[str, Any], **sections: Any) -> Config:
    return Config.model_validate({"memory": memory, **sections})


def peak(forecast: Forecast, phase: str) -> PhasePeak:
    return next(each for each in forecast.phases if each.phase == phase)


@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit"])
def test_every_phase_of_a_run_is_foreseen(nano: Base, precision: str, optimizer: str) -> None:
    settings = config({"base_precision": precision, "text_precision": precision}, training={"optimizer": optimizer})
    forecast = forecast_of(Work(settings, nano, (128, 128), (128, 128)))
    assert [phase.phase for phase in forecast.phases] == ALL
    assert all(phase.bytes > 0 for phase in forecast.phases)
    assert {"weights", "adapter", "optimizer", "inputs", "activations"} <= set(peak(forecast, "backward").alive)
    assert peak(forecast, "update").alive["gradients"] == peak(forecast, "update").alive["adapter"]
    assert forecast.reserved >= forecast.peak.bytes


def test_a_run_without_previews_has_no_such_phase(nano: Base) -> None:
    forecast = foresee_training(Work(config({}), nano, (128, 128), None))
    assert [phase.phase for phase in forecast.phases] == ["load", *STEP]


def test_an_optimizer_of_8_bits_holds_a_quarter_of_the_state(dev: Base) -> None:
    held = {}
    for optimizer in ("adamw", "adamw-8bit"):
        settings = config({}, training={"optimizer": optimizer})
        forecast = foresee_training(Work(settings, dev, (64, 64), None, depths=(1, 1)))
        held[optimizer] = peak(forecast, "update").alive["optimizer"]
    assert held["adamw-8bit"] == pytest.approx(held["adamw"] / 4, rel=0.03)


def test_a_guard_of_what_the_base_knows_takes_no_second_set_of_activations(nano: Base) -> None:
    guard = {"method": "output", "prompts": ["a cat"]}
    memory = {"base_precision": "fp32", "recompute": "none"}
    peaks = [
        peak(foresee_training(Work(settings, nano, (128, 128), None)), "backward").bytes
        for settings in (
            config(memory, training={"precision": "fp32"}),
            config(memory, training={"precision": "fp32", "preservation": guard}),
        )
    ]
    assert peaks[1] == pytest.approx(peaks[0], rel=0.05)


def test_a_moving_average_counts(nano: Base) -> None:
    held = [
        peak(foresee_training(Work(settings, nano, (128, 128), None)), "update").alive["optimizer"]
        for settings in (
            config({}, training={"optimizer": "adamw"}),
            config({}, training={"ema_decay": 0.9, "optimizer": "adamw"}),
        )
    ]
    assert held[1] == pytest.approx(held[0] * 1.5, rel=0.01)


def test_quantised_text_encoders_take_less(dev: Base) -> None:
    works = {
        precision: Work(config({"text_precision": precision}), dev, (64, 64), None, depths=(1, 1))
        for precision in ("bf16", "nf4")
    }
    held = {precision: peak(forecast_of(work), "encode captions") for precision, work in works.items()}
    assert held["bf16"].alive["weights"] / GIB == pytest.approx(9.1, abs=0.05)
    assert held["nf4"].alive["weights"] / GIB == pytest.approx(2.7, abs=0.05)


def test_a_forecast_is_kept_as_json_and_read_again(nano: Base) -> None:
    forecast = forecast_of(Work(config({}), nano, (128, 128), (128, 128)))
    assert forecast_from(forecast.as_record()) == forecast


def test_the_time_line_of_a_step_shows_its_peak(nano: Base) -> None:
    forecast = foresee_training(Work(config({"recompute": "none"}), nano, (128, 128), (128, 128)))
    highest = max(sum(alive.values()) for _, alive in forecast.timeline)
    assert highest == max(peak(forecast, phase).bytes for phase in STEP)
    assert len(forecast.timeline) <= 400


def test_dropout_is_simulated(nano: Base) -> None:
    memory = {"recompute": "none"}
    plain, dropping = (
        peak(foresee_training(Work(config(memory, lora={"dropout": rate}), nano, (128, 128), None)), "backward").bytes
        for rate in (0.0, 0.1)
    )
    assert plain <= dropping < 1.1 * plain


@pytest.mark.parametrize("recompute", ["none", "all"])
def test_a_base_in_float32_that_is_computed_with_in_bfloat16_counts_as_float32(nano: Base, recompute: str) -> None:
    memory = {"base_precision": "fp32", "recompute": recompute}
    mixed, whole = (
        foresee_training(Work(config(memory, training={"precision": precision}), nano, (128, 128), (128, 128)))
        for precision in ("bf16", "fp32")
    )
    assert mixed == whole
