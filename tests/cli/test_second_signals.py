"""A second signal ends a real command at once wherever it is at work, and the run goes on from what was whole."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fluxtune.manifests import verify_manifest
from fluxtune.runs import Run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")

STUCK = """
import sys, time
from fluxtune.cli.app import main
from fluxtune.training import {module} as module

work, calls = module.{work}, []

def stuck(*given):
    calls.append(1)
    if len(calls) == 2:
        time.sleep(600)
    return work(*given)

module.{work} = stuck
main()
"""
"""fluxtune, with a part of its work that takes ten minutes at the second time."""


def at_previews(event: dict[str, Any]) -> bool:
    return event.get("name") == "previews" and "at step 2" in event["detail"]


def at_the_step_after_the_second_checkpoint(event: dict[str, Any]) -> bool:
    return event.get("step") == 3


@pytest.mark.parametrize(
    ("module", "work", "reached", "first", "second"),
    [
        ("previews", "generate", at_previews, signal.SIGINT, signal.SIGTERM),
        ("checkpoint", "write_manifest", at_the_step_after_the_second_checkpoint, signal.SIGTERM, signal.SIGINT),
    ],
    ids=["in previews", "in the thread that saves"],
)
def test_a_second_signal_leaves_at_once_and_the_run_goes_on(
    tiny_flux: Path,
    pictures: Path,
    tmp_path: Path,
    fluxtune: Callable,
    module: str,
    work: str,
    reached: Callable[[dict[str, Any]], bool],
    first: signal.Signals,
    second: signal.Signals,
) -> None:
    sets = ["training.precision=fp32", "memory.base_precision=fp32", "memory.text_precision=fp32"]
    sets += ["training.optimizer=adamw", "training.device=cpu", "dataset.resolution=64", "training.steps=5"]
    sets += ["checkpoints.every=1", "previews.every=2", "previews.steps=1", "previews.seeds=[1]"]
    arguments = ["train", str(pictures), "--base", str(tiny_flux), "-o", "run", *(f"--set={each}" for each in sets)]
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK.format(module=module, work=work), *arguments, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stdout is not None and process.stderr is not None
    assert any(reached(json.loads(line)) for line in process.stdout)
    process.send_signal(first)
    assert any("to leave at once without saving" in line for line in process.stderr)
    process.send_signal(second)
    process.communicate(timeout=20)
    assert process.returncode == -second

    run = Run.open(tmp_path / "run")
    assert run.checkpoints()
    for folder in run.checkpoints():
        verify_manifest(folder)
    outcome = fluxtune("train", "--resume", str(run.folder), "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.records()[-1]["data"]["steps"] == 5
    assert not [path for path in run.folder.rglob("*") if path.name == "lock" or path.name.startswith(".")]
    made = sorted(path.parent.name for path in (run.folder / "previews").rglob("*.png"))
    assert made == ["step-000000", "step-000002", "step-000004", "step-000005"]
