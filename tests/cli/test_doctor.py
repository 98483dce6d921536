"""`fluxtune doctor` as it is called."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_nvidia_smi
import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")


@pytest.fixture(autouse=True)
def this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No card, no network."""
    fake_nvidia_smi.remove(monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_it_is_done_where_nothing_is_broken(fluxtune: Callable[..., Any]) -> None:
    done = fluxtune("doctor", "--base", "nano")
    assert done.code == 0
    lines = done.out.splitlines()
    for check in ("torch", "libraries", "bitsandbytes"):
        assert any(line.startswith(f"ok: {check}: ") for line in lines), done.out
    assert any(line.startswith("warning: driver: no NVIDIA card") for line in lines)
    assert lines[-1].startswith("nothing is broken")


def test_a_torch_for_the_processor_beside_a_card_is_an_error_whose_mend_can_be_copied_as_a_line(
    fluxtune: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    if torch.version.cuda is not None:
        pytest.skip("this torch is built for CUDA")
    monkeypatch.setattr("fluxtune.environment.card._PLACES", ("nvidia-smi",))
    monkeypatch.setattr("fluxtune.doctor.examination._of_libraries", lambda torch, graphics: iter(()))
    fake_nvidia_smi.install(tmp_path / "bin", monkeypatch)
    done = fluxtune("doctor", "--base", "nano")
    assert done.code == 2
    lines = done.out.splitlines()
    assert "ok: card: NVIDIA GeForce RTX 4090, 24.0 GiB, compute capability 8.9" in lines
    assert any(line.startswith("error: torch: ") for line in lines)
    command = lines[lines.index("torch:") + 1]
    assert command.endswith("pip install torch==2.13.0+cu130 --index-url https://download.pytorch.org/whl/cu130")
    assert lines[-1] == "1 error: mend from the top, then run `fluxtune doctor` again"


def test_a_broken_torch_is_a_finding_and_not_its_end(tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('half of it is missing')")
    paths = os.pathsep.join([str(broken.parent), *filter(None, [os.environ.get("PYTHONPATH")]), *sys.path[1:]])
    done = subprocess.run(
        [sys.executable, "-m", "fluxtune", "doctor", "--base", "nano", "--json"],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    (torch,) = [event for event in events if event.get("check") == "torch"]
    assert torch["message"] == "torch cannot be imported: ImportError: half of it is missing"
    assert events[-1]["event"] == "result"
    assert events[-1]["command"] == "doctor" and events[-1]["data"]["errors"] >= 1
