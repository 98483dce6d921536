from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import STEPS, Trained, config_for, plain_config, stop_after, train_in

from fluxtune.errors import ExitCode, Stopped, StorageError, UsageError
from fluxtune.events import Resumed, Step, Warning
from fluxtune.runs import Run

SAME = ("step", "total", "loss", "learning_rate", "grad_norm", "epoch")


def figures(steps: list[Step]) -> list[tuple[Any, ...]]:
    """What must be equal in the step events of equal runs: all but the times and the memory."""
    return [tuple(getattr(step, name) for name in SAME) for step in steps]


@pytest.fixture(scope="session")
def stopped_run(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of ``trained``, stopped after five of its six steps; checkpoints of steps 4 and 5."""
    folder = tmp_path_factory.mktemp("stopped") / "mug"
    with pytest.raises(Stopped) as stop:
        train_in(folder, trained.config, cache=trained.cache, should_stop=stop_after(5))
    assert stop.value.exit_code == ExitCode.INTERRUPTED
    assert f"--resume {folder}" in str(stop.value.hint)
    return folder


@pytest.fixture
def stopped(stopped_run: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run."""
    return Path(shutil.copytree(stopped_run, tmp_path / "mug"))


def resumed(run: Path, like: Trained) -> Trained:
    return train_in(run, like.config, cache=like.cache, resume=run)


def same_file(first: Path, second: Path) -> bool:
    one, other = load_file(first), load_file(second)
    return set(one) == set(other) and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_stopped_run_is_saved_and_says_so(stopped: Path) -> None:
    run = Run.open(stopped)
    assert (run.state.status, run.state.step, run.state.result) == ("stopped", 5, None)
    assert [folder.name for folder in run.checkpoints()] == ["step-000004", "step-000005"]
    last = json.loads((stopped / "events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["code"]) == ("error", ExitCode.INTERRUPTED)
    assert not (stopped / "lock").exists()


def test_a_resumed_run_ends_as_the_unbroken_one_to_the_bit(stopped: Path, trained: Trained) -> None:
    before = (stopped / "events.jsonl").read_text()
    again = resumed(stopped, trained)
    assert again.seen(Resumed) == [Resumed(5, str(stopped / "checkpoints" / "step-000005"))]
    assert figures(again.seen(Step)) == figures(trained.seen(Step))[5:]
    assert same_file(again.file, trained.file)
    for state in ("adapter", "average", "optimizer"):
        name = f"checkpoints/step-000006/state/{state}.safetensors"
        assert same_file(stopped / name, trained.folder / name)
    assert (stopped / "events.jsonl").read_text().startswith(before)
    assert Run.open(stopped).state.status == "finished"


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(stopped: Path, trained: Trained) -> None:
    damaged = stopped / "checkpoints" / "step-000005" / "state" / "adapter.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    again = resumed(stopped, trained)
    (warning,) = [each for each in again.seen(Warning) if each.where]
    assert "the file's content changed" in warning.message
    assert warning.where == str(damaged)
    assert [event.step for event in again.seen(Resumed)] == [4]
    assert same_file(again.file, trained.file)
    names = sorted(path.name for path in (stopped / "checkpoints").iterdir())
    assert names == ["damaged-step-000005", "step-000004", "step-000006"]


def test_without_any_whole_checkpoint_the_run_begins_anew(stopped: Path, trained: Trained) -> None:
    for folder in Run.open(stopped).checkpoints():
        (folder / "state.json").unlink()
    again = resumed(stopped, trained)
    assert len([each for each in again.seen(Warning) if each.where]) == 2
    assert figures(again.seen(Step)) == figures(trained.seen(Step))
    assert same_file(again.file, trained.file)


def test_a_finished_run_can_be_trained_longer(trained: Trained, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained.folder, tmp_path / "mug"))
    longer = trained.config.model_copy(
        update={"training": trained.config.training.model_copy(update={"steps": STEPS + 1})}
    )
    again = train_in(run, longer, cache=trained.cache, resume=run)
    assert [step.step for step in again.seen(Step)] == [STEPS + 1]
    assert "steps = 7" in (run / "config.toml").read_text()


def test_another_optimizer_cannot_go_on_from_the_state(
    stopped: Path, trained: Trained, tiny_flux: Path, few_pictures: Path
) -> None:
    other = config_for(tiny_flux, few_pictures, training__optimizer="adamw-8bit")
    with pytest.raises(StorageError, match=r"holds the state of AdamW .*the run wants AdamW8bit"):
        train_in(stopped, other, cache=trained.cache, resume=stopped)


def settings_and_state(run: Path) -> dict[str, str]:
    return {name: (run / name).read_text() for name in ("config.toml", "origins.json", "run.json")}


def test_a_resume_that_is_refused_leaves_the_runs_settings_and_state_alone(
    stopped: Path, trained: Trained, tiny_flux: Path, few_pictures: Path
) -> None:
    before = settings_and_state(stopped)
    other = config_for(tiny_flux, few_pictures, lora__rank=8)
    with pytest.raises(StorageError, match="belongs to another adapter"):
        train_in(stopped, other, cache=trained.cache, resume=stopped, origins={"lora.rank": "--set"})
    assert settings_and_state(stopped) == before
    last = json.loads((stopped / "events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["code"]) == ("error", ExitCode.STORAGE)
    assert not (stopped / "lock").exists()


def test_fewer_steps_than_are_done_are_refused(
    stopped: Path, trained: Trained, tiny_flux: Path, few_pictures: Path
) -> None:
    before = settings_and_state(stopped)
    shorter = config_for(tiny_flux, few_pictures, training__steps=4)
    with pytest.raises(UsageError, match=r"training.steps is 4, and this run has done 5 steps") as error:
        train_in(stopped, shorter, cache=trained.cache, resume=stopped)
    assert "--steps 5 or more" in str(error.value.hint)
    assert settings_and_state(stopped) == before
    assert not (stopped / "mug.safetensors").exists()


def test_another_adapter_cannot_go_on_from_the_state(
    stopped: Path, trained: Trained, tiny_flux: Path, few_pictures: Path
) -> None:
    other = config_for(tiny_flux, few_pictures, lora__rank=8)
    with pytest.raises(StorageError, match="belongs to another adapter"):
        train_in(stopped, other, cache=trained.cache, resume=stopped)


def test_a_run_with_eight_bit_state_resumes_to_the_bit(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path, trained: Trained
) -> None:
    # Rank 64 makes matrices of 4096 values, the smallest whose state is held in 8 bits.
    config = plain_config(tiny_flux, few_pictures, training__optimizer="adamw-8bit", training__steps=4, lora__rank=64)
    unbroken = train_in(tmp_path / "unbroken" / "mug", config, cache=trained.cache)
    run = tmp_path / "broken" / "mug"
    with pytest.raises(Stopped):
        train_in(run, config, cache=trained.cache, should_stop=stop_after(2))
    state = load_file(run / "checkpoints" / "step-000002" / "state" / "optimizer.safetensors")
    assert torch.uint8 in {tensor.dtype for tensor in state.values()}
    again = train_in(run, config, cache=trained.cache, resume=run)
    assert figures(again.seen(Step)) == figures(unbroken.seen(Step))[2:]
    assert same_file(again.file, unbroken.file)
