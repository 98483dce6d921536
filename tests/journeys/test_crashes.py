"""A nano run killed with SIGKILL at moments drawn by chance, and resumed until it is done: nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).with_name("killed_runs.py")

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs fork and pidfd")


def killed(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(folder), str(kills), str(seed)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def require_nothing_lost(seen: dict[str, Any], kills: int) -> None:
    assert seen["problems"] == []
    assert seen["kills"] == kills
    assert seen["runs"]
    for run in seen["runs"]:
        assert run == seen["expected"]
    assert seen["expected"]["status"] == "finished"
    assert len(seen["expected"]["progress"]) == 12 + 3  # steps and previews


def test_a_run_that_is_killed_thirty_times_loses_nothing_and_ends_as_the_unbroken_one(tmp_path: Path) -> None:
    seen = killed(tmp_path, kills=30, seed=7)
    require_nothing_lost(seen, 30)
    assert len(seen["places"]) >= 5, seen["places"]


@pytest.mark.slow
def test_a_run_that_is_killed_three_hundred_times_loses_nothing(tmp_path: Path) -> None:
    seen = killed(tmp_path, kills=300, seed=300)
    require_nothing_lost(seen, 300)
    assert len(seen["places"]) >= 8, seen["places"]
