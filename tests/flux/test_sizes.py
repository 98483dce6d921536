"""What weights take, told from configs, against what a simulation of the same parts holds."""

from __future__ import annotations

import pytest
import torch

from fluxtune.config.memory import MemoryConfig
from fluxtune.config.schema import Config
from fluxtune.flux.base import Base
from fluxtune.flux.known import known_base
from fluxtune.flux.sizes import text_bytes, transformer_bytes
from fluxtune.training.simulation import Work, foresee_encoders, foresee_training

BF16 = torch.bfloat16


@pytest.fixture(scope="module")
def dev() -> Base:
    known = known_base("black-forest-labs/FLUX.1-dev")
    assert known is not None
    return known


def simulated(base: Base, phase: str, **memory: str) -> int:
    work = Work(Config.model_validate({"memory": memory}), base, (64, 64), None)
    forecast = foresee_encoders(work) if phase == "encode captions" else foresee_training(work)
    return next(each.alive["weights"] for each in forecast.phases if each.phase == phase)


@pytest.mark.parametrize("precision", ["bf16", "int8", "fp8", "nf4"])
def test_text_encoders_take_what_their_simulation_holds(dev: Base, precision: str) -> None:
    held = simulated(dev, "encode captions", text_precision=precision)
    assert text_bytes(dev, precision, BF16) == pytest.approx(held, rel=0.01)


@pytest.mark.parametrize(("precision", "modulation"), [("bf16", "ahead"), ("nf4", "card")])
def test_the_transformer_takes_what_its_simulation_holds(dev: Base, precision: str, modulation: str) -> None:
    memory = {"base_precision": precision, "modulation": modulation}
    held = simulated(dev, "update", **memory)
    assert transformer_bytes(dev, MemoryConfig.model_validate(memory), BF16) == pytest.approx(held, rel=0.01)
