"""Whole runs with all of [memory] together, stopped, resumed and sampled: what runs with none of it leave behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from late_transfers import LateTransfers
from PIL import Image
from tiny_runs import Trained, config_for, stop_after, train_in

from fluxtune.config.schema import Config
from fluxtune.errors import Stopped
from fluxtune.events import Phase, Step
from fluxtune.flux import load
from fluxtune.lora.use import LoraUse
from fluxtune.memory import activations, offload
from fluxtune.memory.activations import ActivationOffload
from fluxtune.sampling.generate import sample
from fluxtune.sampling.request import SampleRequest
from fluxtune.training import foresight

TOGETHER: dict[str, Any] = {
    "memory__modulation": "ahead",
    "memory__streamed_blocks": 3,
    "memory__offload_activations": True,
    "memory__cache_quantized": True,
    "memory__recompute": "all",
    "memory__keep": {"products": [1, 0], "everything": [0, 1]},
}
PRECISIONS = ["fp32", "nf4", pytest.param("int8", marks=pytest.mark.slow), pytest.param("fp8", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def hard_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not wait for a copy computes NaN; all activations go; what is foreseen ends between previews."""
    for module in (offload, activations):
        monkeypatch.setattr(module, "Transfers", lambda device: LateTransfers())
    monkeypatch.setattr(ActivationOffload, "smallest", 1)
    monkeypatch.setattr(foresight, "SAMPLES_AHEAD", 4)


def settings(base: Path, pictures: Path, precision: str, **together: Any) -> Config:
    usual: dict[str, Any] = {
        "memory__base_precision": precision,
        "lora__targets": ["*norm*.linear", "*.attn.to_[qv]", "*.proj_mlp"],
        "lora__dropout": 0.2,
        "training__preservation": {"method": "prior", "prompts": ["a red star"], "pictures": 1},
    }
    return config_for(base, pictures, **usual, **together)


def requests(run: Trained, output: Path) -> list[SampleRequest]:
    """Of the finished LoRA, as the run's own settings have it, in two sizes."""
    request = SampleRequest(
        run.config.model,
        ("a red star", "a zorvex"),
        (7, 8),
        steps=2,
        guidance=3.5,
        width=128,
        height=96,
        output=output / "wide",
        loras=(LoraUse(run.file, 0.7),),
        compare=True,
        memory=run.config.memory,
        precision="fp32",
        device="cpu",
    )
    return [request, replace(request, width=64, height=160, output=output / "high")]


def pictures_in(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_and_its_pictures_are_those_of_one_without(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path, precision: str
) -> None:
    cache, run = tmp_path / "cache", tmp_path / "together" / "mug"
    with pytest.MonkeyPatch.context() as patch:
        # Where it would be computed ahead, modulation is not quantised.
        patch.setattr(load, "compute_ahead", lambda *_: None)
        config = settings(tiny_flux, few_pictures, precision, memory__modulation="ahead")
        plain = train_in(tmp_path / "plain" / "mug", config, cache=cache)
        for request in requests(plain, tmp_path / "of-plain"):
            sample(request)

    config = settings(tiny_flux, few_pictures, precision, **TOGETHER)
    with pytest.raises(Stopped):
        train_in(run, config, cache=cache, should_stop=stop_after(4))
    together = train_in(run, config, cache=cache, resume=run)
    assert [step.loss for step in together.seen(Step)] == plain.losses[4:]
    assert all(torch.equal(tensor, together.tensors[name]) for name, tensor in plain.tensors.items())
    if precision != "fp32":
        kept = [phase.detail for phase in together.seen(Phase) if phase.name == "cache quantized weights"]
        assert kept and all(detail.startswith("0 new") for detail in kept)
    for request in requests(together, tmp_path / "of-together"):
        sample(request)
    for ours, theirs in ((run, plain.folder), (tmp_path / "of-together", tmp_path / "of-plain")):
        seen, expected = pictures_in(ours), pictures_in(theirs)
        assert len(seen) == len(expected) > 2
        assert all(np.array_equal(*pair) for pair in zip(seen, expected, strict=True))
