from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from same_runs import left_behind
from tiny_runs import STEPS, Trained, config_for, plain_config, stop_after, train_in

from fluxtune.errors import BaseModelError, ExitCode, Stopped, UsageError
from fluxtune.events import Event, Phase, Preview, Result, Resumed, Step, Warning
from fluxtune.runs import Run
from fluxtune.training.resuming import settings_of
from fluxtune.training.run import train

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
    *skipped, told = [each for each in again.seen(Warning) if each.where]
    assert len(skipped) == 2
    assert told.message.startswith("no whole checkpoint is left of the 5 steps that were done")
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


def everything_in(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def test_what_may_not_change_is_refused_all_at_once_and_the_run_left_as_it_was(
    stopped: Path, trained: Trained, tiny_flux: Path, few_pictures: Path
) -> None:
    before = everything_in(stopped)
    other = config_for(tiny_flux, few_pictures, lora__rank=8, training__optimizer="adamw-8bit", training__seed=1)
    with pytest.raises(UsageError) as error:
        train_in(stopped, other, cache=trained.cache, resume=stopped, origins={"lora.rank": "--rank"})
    assert error.value.message == (
        "3 settings cannot change while a run goes on:"
        "\n  lora.rank was 4, is now 8 (--rank)"
        '\n  training.optimizer was "adamw", is now "adamw-8bit" (given)'
        "\n  training.seed was 42, is now 1 (given)"
    )
    assert everything_in(stopped) == before


def test_fewer_steps_than_are_done_are_refused(
    stopped: Path, trained: Trained, tiny_flux: Path, few_pictures: Path
) -> None:
    before = everything_in(stopped)
    shorter = config_for(tiny_flux, few_pictures, training__steps=4)
    with pytest.raises(UsageError, match=r"training.steps is 4, and this run has done 5 steps") as error:
        train_in(stopped, shorter, cache=trained.cache, resume=stopped)
    assert "--steps 5 or more" in str(error.value.hint)
    assert everything_in(stopped) == before


def test_steps_of_which_the_checkpoint_is_damaged_are_not_done(
    stopped: Path, trained: Trained, tiny_flux: Path, few_pictures: Path
) -> None:
    (stopped / "checkpoints" / "step-000005" / "state.json").write_text("{")
    shorter = config_for(tiny_flux, few_pictures, training__steps=4)
    again = train_in(stopped, shorter, cache=trained.cache, resume=stopped)
    assert [event.step for event in again.seen(Resumed)] == [4]
    assert Run.open(stopped).state.status == "finished"


def test_what_may_change_does_and_is_in_the_runs_settings_from_then_on(
    stopped: Path, trained: Trained, tiny_flux: Path, few_pictures: Path
) -> None:
    changes = {
        "training__learning_rate": 5e-4,
        "training__schedule": "cosine",
        "training__weight_decay": 0.5,
        "checkpoints__keep": 1,
        "previews__prompts": ["a blue ball"],
        "memory__recompute": "all",
    }
    again = train_in(stopped, config_for(tiny_flux, few_pictures, **changes), cache=trained.cache, resume=stopped)
    (step,) = again.seen(Step)
    assert step.learning_rate < 5e-4
    assert {preview.prompt for preview in again.seen(Preview)} == {"a blue ball"}
    assert [folder.name for folder in Run.open(stopped).checkpoints()] == ["step-000006"]
    assert settings_of(stopped).config.training.weight_decay == 0.5
    assert not [warning for warning in again.seen(Warning) if warning.where]


def test_a_base_in_another_precision_is_warned_of_and_trains(
    stopped: Path, trained: Trained, tiny_flux: Path, few_pictures: Path
) -> None:
    other = config_for(tiny_flux, few_pictures, memory__base_precision="nf4")
    again = train_in(stopped, other, cache=trained.cache, resume=stopped)
    (warning,) = [each for each in again.seen(Warning) if each.where]
    assert warning.where == "memory.base_precision"
    assert warning.message.startswith('memory.base_precision was "fp32", is now "nf4"')
    assert again.file.is_file()


def test_a_finished_run_says_so_and_is_left_as_it_is(trained: Trained, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained.folder, tmp_path / "elsewhere" / "mug"))
    before = everything_in(run)
    again = train_in(run, trained.config, cache=trained.cache, resume=run)
    phase, result = again.events
    assert isinstance(phase, Phase) and "this run is finished, all 6 steps" in phase.detail
    (first,) = trained.seen(Result)
    assert isinstance(result, Result)
    assert result.data == {**first.data, "run": str(run), "file": str(run / "mug.safetensors")}
    assert everything_in(run) == before


def test_a_finished_run_whose_file_is_gone_writes_it_again(trained: Trained, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained.folder, tmp_path / "mug"))
    (run / "mug.safetensors").unlink()
    again = train_in(run, trained.config, cache=trained.cache, resume=run)
    assert again.seen(Step) == []
    assert same_file(again.file, trained.file)


def test_a_run_that_was_moved_and_renamed_goes_on_also_by_a_link(stopped: Path, trained: Trained) -> None:
    moved = stopped.with_name("cup")
    stopped.rename(moved)
    link = moved.with_name("link")
    link.symlink_to(moved)
    train_in(link, trained.config, cache=trained.cache, resume=link)
    assert same_file(moved / "cup.safetensors", trained.file)


@pytest.mark.parametrize(("at", "later"), [(3, [(3, 8), (6, 7), (6, 8)]), (6, [(6, 8)])])
def test_previews_that_a_stop_was_asked_in_are_made_when_the_run_goes_on(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path, trained: Trained, at: int, later: list[tuple[int, int]]
) -> None:
    config = config_for(tiny_flux, few_pictures, previews__seeds=[7, 8])
    unbroken = train_in(tmp_path / "unbroken" / "mug", config, cache=trained.cache)
    run, seen = tmp_path / "mug", []

    def on_event(event: Event) -> None:
        seen.append(event)

    def asked() -> ExitCode | None:
        made = [event for event in seen if isinstance(event, Preview) and event.step == at]
        return ExitCode.TERMINATED if made else None

    with pytest.raises(Stopped, match=f"after step {at} of 6"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLUXTUNE_CACHE", str(trained.cache))
        train(config, output=run, on_event=on_event, should_stop=asked)
    assert len(list((run / "previews" / f"step-00000{at}").iterdir())) == 1
    again = train_in(run, config, cache=trained.cache, resume=run)
    assert [(each.step, each.seed) for each in again.seen(Preview)] == later
    ours, theirs = left_behind(run), left_behind(unbroken.folder)
    assert all(ours[what] == theirs[what] for what in ("progress", "previews", "result"))


@pytest.fixture
def own_flux(tiny_flux: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_flux, tmp_path / "flux"))


def test_another_base_model_in_the_same_place_is_refused_and_a_moved_one_is_not(
    own_flux: Path, few_pictures: Path, tmp_path: Path, trained: Trained
) -> None:
    config, run = plain_config(own_flux, few_pictures, training__steps=2), tmp_path / "mug"
    with pytest.raises(Stopped):
        train_in(run, config, cache=trained.cache, should_stop=stop_after(1))
    weights = own_flux / "transformer" / "diffusion_pytorch_model.safetensors"
    before, content = everything_in(run), weights.read_bytes()
    weights.write_bytes(content[:-4] + b"\0\0\0\0")
    with pytest.raises(BaseModelError, match="other weights of transformer"):
        train_in(run, config, cache=trained.cache, resume=run)
    assert everything_in(run) == before
    weights.write_bytes(content)
    own_flux.rename(tmp_path / "moved")
    moved = plain_config(tmp_path / "moved", few_pictures, training__steps=2)
    assert train_in(run, moved, cache=trained.cache, resume=run).file.is_file()


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
