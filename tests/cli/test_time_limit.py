from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fluxtune.cli import time_limit
from fluxtune.cli.signals import stop_requests
from fluxtune.cli.time_limit import TimeLimit, seconds_of
from fluxtune.errors import ExitCode, Stopped
from fluxtune.events import Checkpoint, Phase, Step, ignore
from fluxtune.runs import Run
from fluxtune.training import saving
from fluxtune.training.checkpoint import write_checkpoint

SMALL = ["training.precision=fp32", "memory.base_precision=fp32", "memory.text_precision=fp32", "previews.every=0"]
SMALL += ["training.optimizer=adamw", "training.device=cpu", "dataset.resolution=64", "memory.recompute=none"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("5400", 5400), ("1H30M", 5400), ("0.5h", 1800)],
)
def test_a_time_is_written_in_hours_minutes_and_seconds(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "h", "2 hours", "-1", "0", "0h", "1m2h", "1d", "1h5", "1.2.3s", "9999999999h", "nan", "²h"]
)
def test_what_is_no_time_is_a_usage_error(fluxtune: Callable, text: str) -> None:
    outcome = fluxtune("train", "--preset", "nano", f"--max-time={text}")
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: --max-time: {text!r} is no time") and "--max-time 2h" in outcome.err


def step(number: int) -> Step:
    return Step(number, 9, 0.1, 1e-4, 1.0, 1.0, 1.0, 1.0)


def test_the_limit_counts_from_the_start_of_the_process() -> None:
    assert not TimeLimit(100, started=time.time() - 90).is_near()
    assert TimeLimit(100, started=time.time() - 98.5).is_near()  # two hundredths are left for saving


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds, which stands still."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def near_after(limit: TimeLimit, clock: list[float]) -> float:
    """So many seconds after the limit began to count it is near."""
    while not limit.is_near():
        clock[0] += 1.0
    return clock[0] - 1000.0


def test_what_a_step_took_is_left_for_the_next_and_some_time_for_saving(clock: list[float]) -> None:
    limit = TimeLimit(100, started=1000.0)
    limit.sees(step(1))
    clock[0] += 30
    limit.sees(step(2))
    assert near_after(limit, clock) == 100 - 30 - 2


def test_what_writing_took_is_left_twice_for_a_checkpoint_may_have_to_wait_for_one(clock: list[float]) -> None:
    limit = TimeLimit(100, started=1000.0)
    # The first was written by a process that was killed before it could say so.
    for number, seconds in ((1, 0.0), (2, 12.0), (3, 10.0)):
        limit.sees(step(number))
        clock[0] += 5
        limit.sees(Checkpoint(number, "checkpoints/step", seconds))
    assert near_after(limit, clock) == 100 - 5 - 2 * 12


def test_a_run_tells_what_writing_its_checkpoints_took(
    tiny_flux: Path, pictures: Path, fluxtune: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_slowly(*given: Any) -> None:
        time.sleep(0.3)
        write_checkpoint(*given)

    monkeypatch.setattr(saving, "write_checkpoint", write_slowly)
    sets = [f"--set={setting}" for setting in SMALL]
    outcome = fluxtune("train", str(pictures), "--base", str(tiny_flux), *sets, "--steps", "1", "--json")
    (told,) = [record for record in outcome.records() if record["event"] == "checkpoint"]
    assert told["seconds"] >= 0.3


def test_time_that_is_over_before_there_is_a_run_ends_the_work_with_75() -> None:
    with pytest.raises(Stopped, match="--max-time") as stop, stop_requests(limit=TimeLimit(1, 0.0)) as should_stop:
        should_stop.interrupting(ignore)(Phase("preflight"))
    assert stop.value.exit_code == ExitCode.STOPPED_EARLY


def test_a_run_stops_in_time_saved_and_goes_on_to_its_end(
    tiny_flux: Path, pictures: Path, tmp_path: Path, fluxtune: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_limit, "_process_started", time.time)
    sets = [f"--set={setting}" for setting in SMALL]
    command = ["train", str(pictures), "--base", str(tiny_flux), "-o", "run", *sets, "--steps", "1000000", "--json"]
    # A busy machine may not come to the first step in the first times.
    for limit in (4, 20, 60):
        outcome = fluxtune(*command, "--max-time", str(limit))
        last = outcome.records()[-1]
        assert (outcome.code, last["event"], last["code"]) == (75, "error", 75)
        if (tmp_path / "run").exists() and Run.open(tmp_path / "run").state.step:
            break
        command = ["train", "--resume", "run", "--json"] if (tmp_path / "run").exists() else command
    assert last["hint"] == "go on with: fluxtune train --resume run"
    run = Run.open(tmp_path / "run")
    assert run.state.status == "stopped"
    outcome = fluxtune("train", "--resume", "run", "--steps", str(run.state.step + 1), "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.records()[-1]["data"]["steps"] == run.state.step + 1
