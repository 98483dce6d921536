"""What TensorBoard and Weights & Biases have of a run, read back from their files with their own readers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from small_state import new_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from tiny_runs import STEPS, Trained, plain_config, stop_after, train_in
from wandb.proto.wandb_internal_pb2 import Record

from fluxtune.config.checks import contradictions
from fluxtune.config.schema import Config
from fluxtune.errors import ExitCode, Stopped
from fluxtune.events import Event, Preview, Result, Resumed, RolledBack, Step, Warning
from fluxtune.runs import Run
from fluxtune.training.trackers import hyper_parameters, tracked

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
    assert history(file) == {step.step: step.loss for step in run.seen(Step)}
    assert list((file.parent / "files" / "media").rglob("00-seed7_*.png"))
    assert not any(str(tmp_path).encode() in record.SerializeToString() for record in found)
    told = next(record.run for record in found if record.WhichOneof("record_type") == "run")
    assert (told.project, told.display_name) == ("fluxtune", "mug")


def history(file: Path) -> dict[int, float]:
    """Step -> loss of an offline run of W&B."""
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records(file)
        if record.WhichOneof("record_type") == "history"
    ]
    return {row["_step"]: row["loss"] for row in rows if "loss" in row}


@pytest.fixture(autouse=True)
def named_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads files by name: second, process, and a count, of which the tenth comes before the ninth."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return new_run(tmp_path / "mug")


def tell(run: Run, config: Config, *events: Event) -> None:
    """What happens to a run, as its trackers hear of it."""
    with tracked(run, config, lambda event: run.append(event) and None) as emit:
        for event in events:
            emit(event)


def step(number: int, loss: float) -> Step:
    return Step(number, 9, loss, 1e-4, 1.0, 1.0, 1.0, 1.0)


def test_tensorboard_has_no_steps_that_a_run_turned_back_from(tiny_flux: Path, few_pictures: Path, run: Run) -> None:
    config = tracked_config(tiny_flux, few_pictures, "tensorboard")
    first = [step(number, 1.0) for number in (1, 2, 3, 4, 5)]
    tell(run, config, *first, RolledBack(2, None, 0.5), step(3, 2.0), step(4, 2.0))
    tell(run, config, Resumed(4, "checkpoint"), step(5, 3.0))
    losses = [(event.step, event.value) for event in read_back(run.folder).Scalars("loss")]
    assert losses == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 3.0)]


def test_weights_and_biases_has_a_run_for_each_time_that_a_run_turned_back(
    tiny_flux: Path, few_pictures: Path, run: Run
) -> None:
    config = tracked_config(tiny_flux, few_pictures, "wandb")
    tell(run, config, step(1, 1.0), step(2, 1.0), RolledBack(1, None, 0.5), step(2, 2.0))
    tell(run, config, Resumed(2, "checkpoint"), step(3, 3.0))
    files = sorted(run.folder.glob("tracking/wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    assert [history(file) for file in files] == [{1: 1.0, 2: 1.0}, {2: 2.0}, {3: 3.0}]
    told = [next(each.run for each in records(file) if each.WhichOneof("record_type") == "run") for file in files]
    assert [each.display_name for each in told] == ["mug", "mug from step 2", "mug from step 2"]
    assert told[0].run_id != told[1].run_id == told[2].run_id


def test_previews_that_a_resume_begins_with_leave_the_figures_of_their_step(
    tiny_flux: Path, few_pictures: Path, run: Run
) -> None:
    config = tracked_config(tiny_flux, few_pictures, "tensorboard")
    path = run.preview_path(2, 0, 7)
    path.parent.mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(path)
    tell(run, config, step(1, 1.0), step(2, 1.0))
    tell(run, config, Resumed(2, "checkpoint"), Preview(2, "a red star", 7, str(path)), step(3, 1.0))
    reader = read_back(run.folder)
    assert [event.step for event in reader.Scalars("loss")] == [1, 2, 3]
    assert [event.step for event in reader.Images("previews/00-seed7")] == [2]


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
