"""What TensorBoard and Weights & Biases have of a run, read back from their files with their own readers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import STEPS, Trained, plain_config, stop_after, train_in
from wandb.proto.wandb_internal_pb2 import Record

from fluxtune.config.checks import contradictions
from fluxtune.config.schema import Config
from fluxtune.errors import ExitCode, Stopped
from fluxtune.events import Result, Step, Warning
from fluxtune.runs import Run
from fluxtune.training.trackers import hyper_parameters

METRICS = {"loss", "learning_rate", "grad_norm", "rate", "memory", "epoch", "skipped"}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def tracked_config(tiny_flux: Path, few_pictures: Path, *trackers: str, **changes: Any) -> Config:
    config = plain_config(tiny_flux, few_pictures, previews__every=STEPS, checkpoints__every=2, **changes)
    return config.model_copy(update={"tracking": config.tracking.model_copy(update={"trackers": list(trackers)})})


def read_back(run: Path) -> EventAccumulator:
    reader = EventAccumulator(str(run / "tracking" / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    return reader.Reload()


def records(file: Path) -> Iterator[Record]:
    """The records of an offline run: LevelDB's log format, blocks of 32 KiB with chunks of records in them."""
    content, position, parts = file.read_bytes(), 7, b""
    while position + 7 <= len(content):
        left = 2**15 - position % 2**15
        if left < 7:
            position += left
            continue
        size, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        parts += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(parts)
            parts = b""


def test_tensorboard_has_every_step_and_the_previews(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path, trained: Trained
) -> None:
    config = tracked_config(tiny_flux, few_pictures, "tensorboard")
    run = train_in(tmp_path / "mug", config, cache=trained.cache)
    reader = read_back(run.folder)
    assert set(reader.Tags()["scalars"]) == METRICS
    seen = [(event.step, event.value) for event in reader.Scalars("loss")]
    assert seen == [(step.step, pytest.approx(step.loss)) for step in run.seen(Step)]
    (tag,) = reader.Tags()["images"]
    pictures = reader.Images(tag)
    assert (tag, [each.step for each in pictures]) == ("previews/00-seed7", [0, STEPS])
    assert pictures[0].encoded_image_string.startswith(b"\x89PNG")
    assert (pictures[0].width, pictures[0].height) == (128, 128)


def test_a_resumed_run_goes_on_in_the_same_folder_without_steps_twice(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path, trained: Trained
) -> None:
    config, folder = tracked_config(tiny_flux, few_pictures, "tensorboard", "wandb"), tmp_path / "mug"
    with pytest.raises(Stopped):
        train_in(folder, config, cache=trained.cache, should_stop=stop_after(5))
    # As a crash after step 5 leaves it: steps 5 and later are done again.
    shutil.rmtree(folder / "checkpoints" / "step-000005")
    moved = folder.rename(tmp_path / "cup")
    train_in(moved, config, cache=trained.cache, resume=moved)
    assert [event.step for event in read_back(moved).Scalars("loss")] == list(range(1, STEPS + 1))
    first, second = (file.parent.name for file in sorted(moved.glob("tracking/wandb/offline-run-*/*.wandb")))
    assert first.rpartition("-")[2] == second.rpartition("-")[2]


def test_weights_and_biases_has_steps_previews_and_settings_offline(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path, trained: Trained
) -> None:
    config = tracked_config(tiny_flux, few_pictures, "wandb")
    run = train_in(tmp_path / "mug", config, cache=trained.cache)
    (file,) = run.folder.glob("tracking/wandb/offline-run-*/run-*.wandb")
    found = list(records(file))
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.WhichOneof("record_type") == "history"
    ]
    losses = {row["_step"]: row["loss"] for row in rows if "loss" in row}
    assert losses == {step.step: step.loss for step in run.seen(Step)}
    assert list((file.parent / "files" / "media").rglob("00-seed7_*.png"))
    assert not any(str(tmp_path).encode() in record.SerializeToString() for record in found)
    told = next(record.run for record in found if record.WhichOneof("record_type") == "run")
    assert (told.project, told.display_name) == ("fluxtune", "mug")


@pytest.mark.parametrize("call", ["start", "log_images", "finish"])
def test_a_tracker_that_fails_is_told_once_and_the_run_goes_on(
    call: str,
    tiny_flux: Path,
    few_pictures: Path,
    tmp_path: Path,
    trained: Trained,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("the network is gone")

    monkeypatch.setattr(f"accelerate.tracking.TensorBoardTracker.{call}", fail)
    run = train_in(tmp_path / "mug", tracked_config(tiny_flux, few_pictures, "tensorboard"), cache=trained.cache)
    (warning,) = [each for each in run.seen(Warning) if "tracking" in each.message]
    assert warning.message == "tracking with tensorboard ended: ConnectionError: the network is gone"
    assert Run.open(run.folder).state.status == "finished"
    assert len(run.seen(Step)) == STEPS
    assert isinstance(run.events[-1], Result)


def test_without_a_login_weights_and_biases_asks_nothing_and_says_what_to_do(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wandb.teardown()
    run = train_in(tmp_path / "mug", tracked_config(tiny_flux, few_pictures, "wandb"), cache=trained.cache)
    wandb.teardown()
    (warning,) = [each for each in run.seen(Warning) if "tracking" in each.message]
    assert "not logged in: run `wandb login` once, or set WANDB_MODE=offline" in warning.message


def test_a_tracker_that_is_not_installed_is_refused_with_the_settings(
    tiny_flux: Path, few_pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluxtune.config.checks.find_spec", lambda name: None)
    (problem,) = contradictions(tracked_config(tiny_flux, few_pictures, "wandb"), {})
    assert (problem.exit_code, problem.where) == (ExitCode.USAGE, "tracking.trackers")
    assert (problem.message, problem.hint) == ("tracking.trackers: not installed: wandb", "pip install wandb")


def test_trackers_learn_the_settings_but_no_paths(tiny_flux: Path, few_pictures: Path) -> None:
    told = hyper_parameters(plain_config(tiny_flux, few_pictures))
    assert (told["training.steps"], told["model.base"]) == (STEPS, tiny_flux.name)
    assert told["dataset.folders"] == json.dumps([few_pictures.name])
    assert not any("/" in str(value) for value in told.values())
