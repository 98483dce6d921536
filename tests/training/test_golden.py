"""Losses of a short run in full precision: a refactor keeps them to the bit; a change of numbers explains its edit."""

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


def test_the_losses_are_the_recorded_ones_to_the_bit(
    one_thread: None, tiny_flux: Path, few_pictures: Path, tmp_path: Path
) -> None:
    golden = json.loads(GOLDEN.read_text())
    if golden["build"] != build():
        pytest.skip(f"recorded with {golden['build']}, this is {build()}")
    run = train_in(tmp_path / "mug", config_for(tiny_flux, few_pictures), cache=tmp_path / "cache")
    seen = {
        "losses": [step.loss for step in run.seen(Step)],
        "grad_norms": [step.grad_norm for step in run.seen(Step)],
    }
    assert seen == {name: golden[name] for name in seen}, f"the run gives {json.dumps(seen)}"
