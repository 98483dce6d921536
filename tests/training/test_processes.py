"""Several processes on the processor, joined by gloo as those on cards are by NCCL."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from launched import by_accelerate, ended, environment, started, until_step, written
from safetensors.torch import load_file
from tiny_runs import Trained, config_for, plain_config, stop_after, train_in

from fluxtune.config.schema import Config
from fluxtune.errors import ExitCode, Stopped, UsageError
from fluxtune.events import RolledBack, Step, Warning
from fluxtune.runs import Run
from fluxtune.training.processes import ALONE, dealt, tell_shares

MANY = 3000
"""Steps that no test comes to the end of."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> object:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cache(trained: Trained) -> Path:
    """A cache that holds everything already, so that starts are quick."""
    return trained.cache


def settings(tiny_flux: Path, few_pictures: Path, **changes: object) -> Config:
    """A run with everything on whose gradients are sums of two."""
    without = {"training__preservation": {"method": "none"}, "checkpoints__every": 0, "previews__every": 0}
    return config_for(tiny_flux, few_pictures, **{**without, **changes})


def farthest(first: Path, second: Path) -> float:
    """The largest difference of two LoRAs, as a share of the largest value; 0 only where they are equal to the bit."""
    one, other = load_file(first), load_file(second)
    assert set(one) == set(other)
    differences = [float((tensor - other[name]).abs().max()) for name, tensor in one.items()]
    return max(differences) / max(float(tensor.abs().max()) for tensor in one.values())


def test_two_processes_equal_one_with_twice_the_accumulation_to_the_bit(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path, cache: Path
) -> None:
    alone = settings(tiny_flux, few_pictures, training__accumulation=2)
    one = train_in(tmp_path / "one" / "mug", alone, cache=cache)
    run = tmp_path / "two" / "mug"
    file = written(settings(tiny_flux, few_pictures), tmp_path)
    outcome = by_accelerate(2, ["train", "--config", str(file), "-o", str(run), "--json"], cache)
    assert outcome.returncode == 0, outcome.stderr
    assert farthest(run / "mug.safetensors", one.file) == 0
    records = [json.loads(line) for line in outcome.stdout.splitlines()]
    told = [(each["loss"], each["grad_norm"], each["epoch"]) for each in records if each["event"] == "step"]
    assert told == [(step.loss, step.grad_norm, step.epoch) for step in one.seen(Step)]
    assert records[-1]["event"] == "result"
    assert "accumulation = 2" in (run / "config.toml").read_text()
    assert json.loads((run / "origins.json").read_text())["training.accumulation"] == "2 processes"


def test_where_one_of_two_processes_is_killed_the_other_saves_and_one_alone_goes_on(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path, cache: Path
) -> None:
    run, config = tmp_path / "mug", settings(tiny_flux, few_pictures, training__steps=MANY)
    with started(2, ["train", "--config", str(written(config, tmp_path)), "-o", str(run), "--json"], cache) as both:
        until_step(both[0], 3)
        both[1].kill()
        code, out, _ = ended(both[0])
    error = json.loads(out.splitlines()[-1])
    assert (code, error["event"], error["code"]) == (ExitCode.TERMINATED, "error", ExitCode.TERMINATED)
    state = Run.open(run).state
    assert (state.status, state.checkpoint) == ("stopped", f"checkpoints/step-{state.step:06d}")
    assert f"another process of this run was killed, or its machine lost; saved after step {state.step}" in out
    assert f"fluxtune train --resume {run}" in error["hint"]
    assert not (run / "lock").exists()
    longer = settings(tiny_flux, few_pictures, training__steps=state.step + 2, training__accumulation=2)
    resumed = train_in(run, longer, cache=cache, resume=run)
    unbroken = train_in(tmp_path / "unbroken" / "mug", longer, cache=cache)
    assert farthest(resumed.file, unbroken.file) == 0


def test_what_another_process_fails_of_is_what_the_run_fails_of(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path, cache: Path
) -> None:
    run, not_a_folder = tmp_path / "mug", tmp_path / "file"
    not_a_folder.write_text("")
    file = written(settings(tiny_flux, few_pictures), tmp_path)
    others = {1: {"FLUXTUNE_CACHE": str(not_a_folder)}}
    with started(2, ["train", "--config", str(file), "-o", str(run)], cache, others) as both:
        code, _, err = ended(both[0])
        assert ended(both[1]) == (0, "", "")
    assert code == ExitCode.STORAGE
    assert "error: " in err and "process 2 of 2 failed: " in err
    assert not run.exists()


def test_two_processes_go_back_together_as_one_with_twice_the_accumulation(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path, cache: Path
) -> None:
    # With these every step multiplies the weights by -9, until no gradient is finite.
    blown_up: dict[str, object] = {
        "training__learning_rate": 1.0,
        "training__weight_decay": 10.0,
        "training__max_grad_norm": 0.0,
        "training__ema_decay": 0.0,
        "training__steps": 50,
        "training__divergence": {"patience": 1, "learning_rate_factor": 0.1},
        "checkpoints__every": 10,
        "checkpoints__keep": 1,
    }
    one = train_in(
        tmp_path / "one" / "mug", settings(tiny_flux, few_pictures, training__accumulation=2, **blown_up), cache=cache
    )
    (back,) = one.seen(RolledBack)
    run, file = tmp_path / "two" / "mug", written(settings(tiny_flux, few_pictures, **blown_up), tmp_path)
    with started(2, ["train", "--config", str(file), "-o", str(run), "--json"], cache) as both:
        (code, out, err), helper = ended(both[0]), ended(both[1])
    assert (code, helper) == (0, (0, "", "")), err
    records = [json.loads(line) for line in out.splitlines()]
    assert [each["step"] for each in records if each["event"] == "rolled_back"] == [back.step]
    steps = [each["step"] for each in records if each["event"] == "step"]
    assert steps == [step.step for step in one.seen(Step)]
    assert steps.count(back.step + 1) == 2
    assert farthest(run / "mug.safetensors", one.file) == 0


@pytest.mark.slow
def test_where_the_main_process_is_killed_the_others_end_and_the_run_goes_on(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path, cache: Path
) -> None:
    run, config = tmp_path / "mug", settings(tiny_flux, few_pictures, training__steps=MANY, checkpoints__every=2)
    arguments = ["train", "--config", str(written(config, tmp_path)), "-o", str(run), "--json"]
    with started(2, arguments, cache) as both:
        until_step(both[0], 5)
        both[0].kill()
        assert ended(both[1]) == (ExitCode.DONE, "", "")
    step = Run.open(run).state.step
    with started(2, ["train", "--resume", str(run), "--steps", str(step + 3), "--json"], cache) as both:
        assert [ended(each)[0] for each in both] == [0, 0]
    whole = settings(tiny_flux, few_pictures, training__steps=step + 3, training__accumulation=2)
    unbroken = train_in(tmp_path / "unbroken" / "mug", whole, cache=cache)
    assert farthest(run / "mug.safetensors", unbroken.file) == 0


@pytest.mark.slow
def test_two_processes_go_on_with_the_run_of_one(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path, cache: Path
) -> None:
    config = settings(tiny_flux, few_pictures, training__accumulation=2)
    unbroken = train_in(tmp_path / "unbroken" / "mug", config, cache=cache)
    run = tmp_path / "mug"
    with pytest.raises(Stopped):
        train_in(run, config, cache=cache, should_stop=stop_after(2))
    with started(2, ["train", "--resume", str(run), "--json"], cache) as both:
        assert [ended(each)[0] for each in both] == [0, 0]
    assert farthest(run / "mug.safetensors", unbroken.file) == 0


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_a_signal_to_one_process_stops_all_at_the_same_step(
    which: int, tiny_flux: Path, few_pictures: Path, tmp_path: Path, cache: Path
) -> None:
    run, config = tmp_path / "mug", settings(tiny_flux, few_pictures, training__steps=MANY)
    with started(2, ["train", "--config", str(written(config, tmp_path)), "-o", str(run), "--json"], cache) as both:
        until_step(both[0], 3)
        both[which].send_signal(signal.SIGTERM)
        code, out, _ = ended(both[0])
        assert ended(both[1]) == (0, "", "")
    last = [json.loads(line) for line in out.splitlines()][-2:]
    assert [each["event"] for each in last] == ["checkpoint", "error"]
    assert (code, Run.open(run).state.step) == (ExitCode.TERMINATED, last[0]["step"])


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "accumulation"), [(3, 3), (2, 5), (3, 2)])
def test_more_gradients_are_summed_as_near_as_float32_allows(
    processes: int, accumulation: int, tiny_flux: Path, few_pictures: Path, tmp_path: Path, cache: Path
) -> None:
    config = config_for(tiny_flux, few_pictures, training__accumulation=accumulation, training__steps=4)
    one = train_in(tmp_path / "one" / "mug", config, cache=cache)
    run = tmp_path / "many" / "mug"
    with pytest.raises(Stopped):
        train_in(run, config, cache=cache, should_stop=stop_after(1))
    with started(processes, ["train", "--resume", str(run), "--json"], cache) as all_of_them:
        outcomes = [ended(each) for each in all_of_them]
    assert [outcome[0] for outcome in outcomes] == [0] * processes, outcomes
    assert farthest(run / "mug.safetensors", one.file) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("what", ["the launcher is asked to end", "a process is killed"])
def test_under_torchrun_too_the_run_is_saved(
    what: str, tiny_flux: Path, few_pictures: Path, tmp_path: Path, cache: Path
) -> None:
    run, config = tmp_path / "mug", settings(tiny_flux, few_pictures, training__steps=MANY)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    arguments = ["fluxtune", "train", "--config", str(written(config, tmp_path)), "-o", str(run), "--json"]
    with subprocess.Popen(
        [*command, *arguments], env=environment(cache), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as launcher:
        until_step(launcher, 3)
        second = next(each for each in psutil.Process(launcher.pid).children() if each.environ()["RANK"] == "1")
        if what == "a process is killed":
            second.kill()
        else:
            launcher.terminate()
        code, out, _ = ended(launcher)
    assert code != 0
    error = json.loads(out.splitlines()[-1])
    assert (error["event"], error["code"]) == ("error", ExitCode.TERMINATED)
    state = Run.open(run).state
    assert (state.status, state.checkpoint) == ("stopped", f"checkpoints/step-{state.step:06d}")
    assert not second.is_running()


def test_a_new_run_has_the_micro_batches_of_all_its_processes(tiny_flux: Path, few_pictures: Path) -> None:
    config = plain_config(tiny_flux, few_pictures, training__accumulation=3)
    shared, origins = dealt(config, 4)
    assert shared.training.accumulation == 12
    assert origins == {"training.accumulation": "4 processes"}
    assert dealt(config, 1) == (config, {})
    with pytest.raises(UsageError, match="2000 processes with 3 micro-batches each are 6000 a step"):
        dealt(config, 2000)


def test_processes_without_a_micro_batch_are_told(tiny_flux: Path, few_pictures: Path) -> None:
    config, events = plain_config(tiny_flux, few_pictures, training__accumulation=2), []
    tell_shares(config, 3, events.append)
    (warning,) = [each for each in events if isinstance(each, Warning)]
    assert warning.message.startswith("1 of 3 processes have nothing to do")


def test_a_process_alone_has_every_micro_batch_and_changes_no_gradient() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    ALONE.sum_gradients([parameter])
    assert list(ALONE.part_of(range(4, 8))) == [4, 5, 6, 7]
    assert torch.equal(parameter.grad, torch.ones(2))
