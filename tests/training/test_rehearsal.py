"""The largest micro-batch before the first step: what it takes, and that nothing of it stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import config_for, train_in

from fluxtune.config.training import TrainingConfig
from fluxtune.training import loop
from fluxtune.training.optimizers import make_optimizer, missing_state
from fluxtune.training.rehearsal import rehearse
from fluxtune.training.samples import SampleSource
from fluxtune.training.step import Learner

SHAPES = [(16, 3072), (3072, 16), (7, 9)]


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit"])
def test_the_memory_that_the_optimizer_will_take_is_known_before_it_has_any(optimizer: Any) -> None:
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    made = make_optimizer(parameters, TrainingConfig(optimizer=optimizer))
    foretold = missing_state(made)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    made.step()
    states = [value for state in made.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    # bitsandbytes' tables of what each of 256 steps means are shared.
    held = sum({value.data_ptr(): value.nbytes for value in states}.values())
    assert foretold == pytest.approx(held, rel=0.02)
    assert missing_state(made) == 0


def test_the_largest_batch_runs_first_also_when_a_run_goes_on_and_changes_nothing(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def watched(learner: Learner, source: SampleSource) -> None:
        before = [parameter.detach().clone() for parameter in learner.parameters]
        rehearse(learner, source)
        seen.append(source.at(0).subject.latents.numel())
        assert all(torch.equal(one, other) for one, other in zip(before, learner.parameters, strict=True))
        assert all(parameter.grad is None for parameter in learner.parameters)

    config = config_for(tiny_flux, few_pictures, previews__every=0, lora__dropout=0.2)
    monkeypatch.setattr(loop, "rehearse", lambda *_: None)
    without = train_in(tmp_path / "without", config, cache=tmp_path / "cache")
    monkeypatch.setattr(loop, "rehearse", watched)
    rehearsed = train_in(tmp_path / "rehearsed", config, cache=tmp_path / "cache")
    assert rehearsed.losses == without.losses
    longer = config_for(tiny_flux, few_pictures, previews__every=0, lora__dropout=0.2, training__steps=8)
    train_in(rehearsed.folder, longer, cache=tmp_path / "cache", resume=rehearsed.folder)
    # Two pictures of 64 tokens are more than one of 60.
    assert seen == [2 * 64 * 64] * 2
