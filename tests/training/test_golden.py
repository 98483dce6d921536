"""Losses of a short run: a refactor keeps them to the bit on a machine of the kind that recorded them, and nearly on
others; a change of numbers explains its edit."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from pathlib import Path

import diffusers
import peft
import pytest
import torch
from tiny_runs import config_for, train_in

from fluxtune.events import Step

GOLDEN = Path(__file__).parent.parent / "golden" / "tiny_flux.json"
NEAR = 1e-4
"""Kinds of processors differ in the last bits, and six steps make more of it."""


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums are split among threads, and rounded differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build() -> dict[str, str]:
    """What decides the last bits."""
    return {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "peft": peft.__version__,
        "machine": f"{platform.system()} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def test_the_losses_are_the_recorded_ones(
    one_thread: None, tiny_flux: Path, few_pictures: Path, tmp_path: Path
) -> None:
    golden = json.loads(GOLDEN.read_text())
    run = train_in(tmp_path / "mug", config_for(tiny_flux, few_pictures), cache=tmp_path / "cache")
    seen = {
        "losses": [step.loss for step in run.seen(Step)],
        "grad_norms": [step.grad_norm for step in run.seen(Step)],
    }
    expected = {name: golden[name] for name in seen}
    if golden["build"] == build():
        assert seen == expected, f"the run gives {json.dumps(seen)}"
    for name, values in expected.items():
        assert seen[name] == pytest.approx(values, rel=NEAR), f"the run gives {json.dumps(seen)} on {build()}"
