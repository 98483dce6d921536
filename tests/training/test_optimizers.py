from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch

from fluxtune.config.training import TrainingConfig
from fluxtune.training.ema import MovingAverage
from fluxtune.training.optimizers import learning_rate_at, make_optimizer, set_learning_rate


def rates(**settings: object) -> list[float]:
    config = TrainingConfig.model_validate({"steps": 8, "learning_rate": 1.0, **settings})
    return [learning_rate_at(step, config) for step in range(config.steps)]


def test_a_constant_schedule_stays_at_the_peak() -> None:
    assert rates() == [1.0] * 8


def test_the_warm_up_rises_to_the_peak_in_its_steps() -> None:
    assert rates(warmup=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_a_linear_schedule_falls_in_equal_steps_after_the_warm_up() -> None:
    assert rates(warmup=4, schedule="linear") == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_a_cosine_schedule_is_at_half_the_peak_half_way() -> None:
    found = rates(schedule="cosine")
    assert found[0] == 1.0
    assert found[4] == pytest.approx(0.5)
    assert found == sorted(found, reverse=True)
    assert 0.0 < found[-1] < 0.05


def test_the_optimizers_are_the_named_ones_with_the_settings() -> None:
    parameter = torch.nn.Parameter(torch.ones(64, 64))
    for name, kind in (("adamw", torch.optim.AdamW), ("adamw-8bit", bnb.optim.AdamW8bit)):
        config = TrainingConfig.model_validate({"optimizer": name, "learning_rate": 0.5, "weight_decay": 0.25})
        optimizer = make_optimizer([parameter], config)
        assert type(optimizer) is kind
        assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.5, 0.25)


def test_the_eight_bit_optimizer_keeps_its_moments_in_bytes() -> None:
    parameter = torch.nn.Parameter(torch.ones(64, 64))
    optimizer = make_optimizer([parameter], TrainingConfig(optimizer="adamw-8bit"))
    parameter.grad = torch.randn(64, 64)
    optimizer.step()
    assert optimizer.state[parameter]["state1"].dtype == torch.uint8
    assert optimizer.state[parameter]["state2"].dtype == torch.uint8


def test_the_learning_rate_that_is_set_is_the_one_that_acts() -> None:
    parameter = torch.nn.Parameter(torch.ones(4))
    optimizer = make_optimizer([parameter], TrainingConfig(optimizer="adamw", weight_decay=0.0))
    set_learning_rate(optimizer, 0.125)
    parameter.grad = torch.ones(4)
    optimizer.step()
    assert torch.allclose(parameter, torch.full((4,), 0.875))


def test_the_moving_average_follows_its_formula() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    average = MovingAverage({"w": parameter}, decay=0.3)
    expected = 0.0
    for update, value in enumerate((1.0, 5.0, -2.0, 4.0), start=1):
        parameter.data.fill_(value)
        average.update()
        decay = min(0.3, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * value
    assert float(average.weights()["w"]) == pytest.approx(expected)


def test_inside_applied_the_model_holds_the_averages_and_afterwards_its_own_weights() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    average = MovingAverage({"w": parameter}, decay=0.5)
    parameter.data.fill_(1.0)
    average.update()
    with average.applied():
        assert torch.equal(parameter.data, average.average["w"])
    assert parameter.item() == 1.0


def test_without_decay_the_parameters_themselves_are_saved() -> None:
    parameter = torch.nn.Parameter(torch.ones(1))
    average = MovingAverage({"w": parameter}, decay=0.0)
    average.update()
    assert average.weights()["w"] is parameter
