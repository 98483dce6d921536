"""Noise levels drawn as each trainer draws them are distributed as those of the settings that they become."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fluxtune.flux.objective import sigma_of
from fluxtune.handover.handing_over import hand_over
from fluxtune.handover.taking_over import take_over
from fluxtune.handover.targets import Target

COUNT = 6000
TOKENS = 1024


def drawn_there(draw: Callable[[torch.Generator], torch.Tensor]) -> torch.Tensor:
    return draw(torch.Generator().manual_seed(1))


def drawn_here(training: Any) -> torch.Tensor:
    """Levels by our own sampling, for a picture of 512 px."""
    generator = torch.Generator().manual_seed(2)
    options = {"logit_mean": training.logit_mean, "logit_std": training.logit_std, "shift": training.shift}
    return torch.stack([sigma_of(generator, training.timestep_sampling, TOKENS, **options) for _ in range(COUNT)])


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference of two distribution functions (Kolmogorov and Smirnov)."""
    places = torch.linspace(0, 1, 400)
    functions = [torch.searchsorted(each.sort().values.float(), places) / len(each) for each in (one, other)]
    return float((functions[0] - functions[1]).abs().max())


def normal(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(COUNT, generator=generator)


def uniform(generator: torch.Generator) -> torch.Tensor:
    return torch.rand(COUNT, generator=generator)


def moved(levels: torch.Tensor, k: float) -> torch.Tensor:
    return k * levels / (1 + (k - 1) * levels)


BY_SIZE = math.exp(0.5 + (1.15 - 0.5) / (4096 - 256) * (TOKENS - 256))
MODEL = {"pretrained_model_name_or_path": "black-forest-labs/FLUX.1-dev"}
KOHYA = {**MODEL, "network_module": "networks.lora_flux", "network_dim": 4}
SIMPLE = {**MODEL, "model_family": "flux", "model_type": "lora"}
ONE = {"training_method": "LORA", "model_type": "FLUX_DEV_1", "base_model_name": MODEL["pretrained_model_name_or_path"]}
SCRIPT = {**MODEL, "instance_prompt": "a"}
DRAWN: list[tuple[dict[str, Any], Callable[[torch.Generator], torch.Tensor]]] = [
    (KOHYA | {"timestep_sampling": "sigmoid", "sigmoid_scale": 0.7}, lambda g: torch.sigmoid(0.7 * normal(g))),
    (KOHYA | {"timestep_sampling": "shift"}, lambda g: moved(torch.sigmoid(normal(g)), 3.0)),
    (KOHYA | {"timestep_sampling": "flux_shift"}, lambda g: moved(torch.sigmoid(normal(g)), BY_SIZE)),
    (KOHYA | {}, lambda g: moved(1 - uniform(g), 3.0)),
    (
        KOHYA | {"weighting_scheme": "logit_normal", "logit_mean": 0.6, "discrete_flow_shift": 1.0},
        lambda g: 1 - torch.sigmoid(0.6 + normal(g)),
    ),
    (SIMPLE | {}, lambda g: moved(torch.sigmoid(normal(g)), 3.0)),
    (
        SIMPLE | {"flow_schedule_shift": 0, "flow_schedule_auto_shift": True, "flow_sigmoid_scale": 1.2},
        lambda g: moved(torch.sigmoid(1.2 * normal(g)), BY_SIZE),
    ),
    (SIMPLE | {"flow_use_uniform_schedule": True, "flow_schedule_shift": 0}, uniform),
    (SIMPLE | {"flow_use_uniform_schedule": True}, lambda g: moved(uniform(g), 3.0)),
    (ONE | {"timestep_shift": 2.0}, lambda g: moved(uniform(g), 2.0)),
    (
        ONE | {"timestep_distribution": "LOGIT_NORMAL", "noising_bias": -0.4, "noising_weight": 0.3},
        lambda g: torch.sigmoid(1.3 * normal(g) - 0.4),
    ),
    (
        ONE | {"timestep_distribution": "LOGIT_NORMAL", "dynamic_timestep_shifting": True},
        lambda g: moved(torch.sigmoid(normal(g)), BY_SIZE),
    ),
    (SCRIPT | {"weighting_scheme": "none"}, lambda g: 1 - uniform(g)),
    (
        SCRIPT | {"weighting_scheme": "logit_normal", "logit_mean": 0.5, "logit_std": 0.8},
        lambda g: 1 - torch.sigmoid(0.5 + 0.8 * normal(g)),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("given", "draw"), DRAWN)
def test_levels_are_distributed_here_as_there(
    tmp_path: Path, given: dict[str, Any], draw: Callable[[torch.Generator], torch.Tensor]
) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(given), encoding="utf-8")
    training = take_over(file, file.name).config.training
    assert apart(drawn_there(draw), drawn_here(training)) < 0.03


@pytest.mark.parametrize(("kind", "k"), [("sigmoid", None), ("linear", None), ("flux_shift", BY_SIZE)])
def test_those_of_ai_toolkit_are_nearly(tmp_path: Path, kind: str, k: float | None) -> None:
    process = {"type": "sd_trainer", "model": {"is_flux": True}, "datasets": [{"folder_path": "photos"}]}
    job = {"config": {"name": "a", "process": [{**process, "train": {"timestep_type": kind}}]}}
    (tmp_path / "job.json").write_text(json.dumps(job), encoding="utf-8")
    training = take_over(tmp_path / "job.json", "job.json").config.training

    def draw(generator: torch.Generator) -> torch.Tensor:
        levels = torch.sigmoid(normal(generator)) if kind == "sigmoid" else uniform(generator)
        return levels if k is None else moved(levels, k)

    assert apart(drawn_there(draw), drawn_here(training)) < 0.035


OURS: list[dict[str, Any]] = [
    {"timestep_sampling": "uniform"},
    {"timestep_sampling": "logit-normal", "logit_mean": 0.7, "logit_std": 0.8},
    {"timestep_sampling": "shift", "shift": 2.0, "logit_mean": -0.3},
    {"timestep_sampling": "flux-shift", "logit_std": 1.4},
]


@pytest.mark.parametrize("target", [target for target in Target if target is not Target.AI_TOOLKIT])
@pytest.mark.parametrize("training", OURS)
def test_what_is_written_draws_the_same_levels(tmp_path: Path, target: Target, training: dict[str, Any]) -> None:
    from test_handing_over import run_of

    from fluxtune.events import ignore

    changes = {f"training__{key}": value for key, value in training.items()}
    config = run_of(tmp_path, dataset__resolution=[512], **changes)
    handed = hand_over(config, target, tmp_path / "there", ignore)
    back = take_over(Path(handed.settings), handed.settings).config.training
    assert apart(drawn_here(config.training), drawn_here(back)) < 0.03
