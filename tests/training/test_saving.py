"""Saving while training goes on: what waits for what, what is tried again, what stops the run."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import injected
from small_state import SmallState, holds, new_run

from fluxtune.errors import DivergedError, ExitCode, StorageError, VerificationError
from fluxtune.events import Checkpoint, Event, Warning
from fluxtune.manifests import MANIFEST
from fluxtune.runs import STATE_COPY, Run
from fluxtune.training import checkpoint, saving
from fluxtune.training.checkpoint import last_good_checkpoint, load_checkpoint, write_checkpoint
from fluxtune.training.retention import DROPPED, Retention
from fluxtune.training.saving import Saver, patiently


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return new_run(tmp_path / "runs" / "mug")


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def saver(run: Run, events: list[Event]) -> Saver:
    return Saver(run, Retention(run, 2, every=0), events.append, pauses=(0.0, 0.0))


def save(saver: Saver, *steps: int) -> None:
    for step in steps:
        saver.begin(SmallState(step).snapshot())
    saver.settle()


def warnings(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Warning)]


def names(run: Run) -> list[str]:
    return sorted(path.name for path in (run.folder / "checkpoints").iterdir())


@pytest.fixture
def held_writing(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The writing thread waits for this before it writes anything."""
    go_on = threading.Event()

    def write(*arguments: object) -> None:
        go_on.wait(300)
        write_checkpoint(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(saving, "write_checkpoint", write)
    yield go_on
    go_on.set()


def test_training_goes_on_while_a_checkpoint_is_written_and_hears_of_it_when_it_looks(
    run: Run, saver: Saver, events: list[Event], held_writing: threading.Event
) -> None:
    state = SmallState(1)
    saver.begin(state.snapshot())
    saver.look()
    assert (events, run.state.checkpoint) == ([], None)
    with torch.no_grad():
        for tensor in state.tensors():
            tensor.fill_(9.0)
    held_writing.set()
    saver.settle()
    assert events == [Checkpoint(1, str(run.checkpoint_folder(1)))]
    assert (run.state.step, run.state.checkpoint) == (1, "checkpoints/step-000001")
    assert holds(run.checkpoint_folder(1), SmallState(1))


def test_one_is_written_at_a_time_and_all_are_said_in_order(run: Run, saver: Saver, events: list[Event]) -> None:
    save(saver, 1, 2, 3, 4)
    assert [event.step for event in events if isinstance(event, Checkpoint)] == [1, 2, 3, 4]
    assert names(run) == ["step-000003", "step-000004"]


def test_what_the_loop_counts_comes_back(run: Run, saver: Saver) -> None:
    state = SmallState(3)
    saver.begin(state.snapshot({"skipped": 2, "learning_rate_factor": 0.5}))
    saver.settle()
    step, counters = load_checkpoint(run.checkpoint_folder(3), state.parameters, state.optimizer, state.average)
    assert (step, counters) == (3, {"skipped": 2, "learning_rate_factor": 0.5})


@pytest.mark.parametrize("part", ["adapter", "average", "optimizer"])
def test_what_is_not_finite_is_never_saved(part: str) -> None:
    state = SmallState(2)
    parameter = next(iter(state.parameters.values()))
    held = {
        "adapter": parameter.data,
        "average": next(iter(state.average.average.values())),
        "optimizer": state.optimizer.state[parameter]["exp_avg"],
    }
    held[part][0, 0] = float("nan")
    with pytest.raises(DivergedError, match=f"after step 2 the {part} is not finite .* the checkpoint before stands"):
        state.snapshot()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN])
def test_what_waiting_can_help_is_said_and_tried_again(run: Run, saver: Saver, events: list[Event], error: int) -> None:
    with injected(run.folder, 8, error):
        save(saver, 1)
    assert len(warnings(events)) == 1
    assert "the checkpoint of step 1 could not be saved" in warnings(events)[0]
    assert events[-1] == Checkpoint(1, str(run.checkpoint_folder(1)))


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS])
def test_what_waiting_cannot_help_stops_the_run_at_once(
    run: Run, saver: Saver, events: list[Event], error: int
) -> None:
    save(saver, 1)
    with pytest.raises(StorageError) as failure, injected(run.folder, 8, error, lasting=True):
        save(saver, 2)
    assert failure.value.exit_code == ExitCode.STORAGE
    assert os.strerror(error).lower() in failure.value.message
    assert warnings(events) == []
    assert holds(run.checkpoints()[-1], SmallState(1))


def test_a_disk_that_stays_full_stops_the_run_after_the_last_attempt(
    run: Run, saver: Saver, events: list[Event]
) -> None:
    save(saver, 1)
    with pytest.raises(StorageError, match="no space left"), injected(run.folder, 8, errno.ENOSPC, lasting=True):
        save(saver, 2)
    assert len(warnings(events)) == 2
    assert last_good_checkpoint(run, events.append) == run.checkpoint_folder(1)
    assert holds(run.checkpoint_folder(1), SmallState(1))


def test_while_a_save_waits_to_be_tried_again_training_goes_on_and_a_newer_one_replaces_it(
    run: Run, events: list[Event]
) -> None:
    saver = Saver(run, Retention(run, 2, every=0), events.append, pauses=(0.2,))
    with injected(run.folder, 8, errno.ENOSPC):
        saver.begin(SmallState(1).snapshot())
        saver.begin(SmallState(2).snapshot())
    saver.look()
    assert len(warnings(events)) == 1
    assert run.checkpoints() == []
    saver.settle()
    assert [folder.name for folder in run.checkpoints()] == ["step-000002"]
    assert holds(run.checkpoint_folder(2), SmallState(2))


def test_whatever_ends_the_work_a_checkpoint_that_is_being_written_is_finished(
    run: Run, saver: Saver, events: list[Event], held_writing: threading.Event
) -> None:
    threading.Timer(0.1, held_writing.set).start()
    with pytest.raises(ZeroDivisionError), saver:
        saver.begin(SmallState(1).snapshot())
        raise ZeroDivisionError
    assert events == [Checkpoint(1, str(run.checkpoint_folder(1)))]
    assert Run.open(run.folder).state.step == 1


def test_a_save_that_fails_while_another_error_ends_the_work_is_a_warning(
    run: Run, saver: Saver, events: list[Event]
) -> None:
    with pytest.raises(ZeroDivisionError), injected(run.folder, 8, errno.EROFS, lasting=True), saver:
        saver.begin(SmallState(1).snapshot())
        raise ZeroDivisionError
    assert "read-only" in warnings(events)[0]


def test_a_file_that_reads_back_otherwise_is_written_again(
    run: Run, saver: Saver, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes, broken = checkpoint.files.write_bytes, ["optimizer.safetensors"]

    def write(path: Path, content: bytes, make_folder: bool = True) -> None:
        write_bytes(path, content, make_folder)
        if path.name in broken:
            broken.remove(path.name)
            flip(path, 50)

    monkeypatch.setattr(checkpoint.files, "write_bytes", write)
    save(saver, 1)
    (warning,) = warnings(events)
    assert "reads back otherwise" in warning
    assert holds(run.checkpoint_folder(1), SmallState(1))


def test_an_adapter_that_the_precision_of_the_file_cannot_hold_stops_the_run(run: Run, saver: Saver) -> None:
    save(saver, 1)
    state = SmallState(2)
    next(iter(state.parameters.values())).data.mul_(1e30)
    state.average.average = {}
    with pytest.raises(VerificationError, match="not finite"):
        saver.begin(replace(state.snapshot(), dtype=torch.float16))
        saver.settle()
    assert [folder.name for folder in run.checkpoints()] == ["step-000001"]


def test_a_damaged_checkpoint_does_not_count_as_a_kept_one(run: Run, saver: Saver) -> None:
    save(saver, 1, 2)
    flip(run.checkpoint_folder(2) / "state" / "optimizer.safetensors", 100)
    save(saver, 3)
    assert names(run) == ["step-000001", "step-000002", "step-000003"]


def test_what_a_process_was_killed_in_dropping_is_dropped_by_the_next(run: Run, saver: Saver) -> None:
    save(saver, 2, 4)
    kept = names(run)
    gone = shutil.copytree(run.checkpoint_folder(2), run.checkpoint_folder(1))
    shutil.copytree(gone, gone.with_name(f".step-000000{DROPPED}"))
    Retention(run, 2, 1).tidy(4, 4)
    assert [path.name for path in sorted(gone.parent.iterdir())] == kept


def test_a_checkpoint_of_the_same_step_stands_when_it_is_whole_and_is_set_aside_when_it_is_not(
    run: Run, saver: Saver
) -> None:
    save(saver, 1)
    written = (run.checkpoint_folder(1) / MANIFEST).stat().st_ino
    save(saver, 1)
    assert (run.checkpoint_folder(1) / MANIFEST).stat().st_ino == written
    flip(run.checkpoint_folder(1) / "state.json", 3)
    save(saver, 1)
    assert names(run) == ["damaged-step-000001", "step-000001"]
    assert holds(run.checkpoint_folder(1), SmallState(1))


def test_a_run_folder_that_is_gone_is_one_error_and_nothing_is_made_in_its_place(run: Run, saver: Saver) -> None:
    save(saver, 1)
    shutil.move(run.folder, run.folder.with_name("elsewhere"))
    with pytest.raises(StorageError, match="the run folder is gone") as failure:
        save(saver, 2)
    assert (failure.value.where, failure.value.exit_code) == (str(run.folder), ExitCode.STORAGE)
    assert not run.folder.exists()
    assert holds(Run.open(run.folder.with_name("elsewhere")).checkpoints()[-1], SmallState(1))


def test_a_run_folder_that_is_deleted_while_a_checkpoint_is_written_is_not_made_again(
    run: Run, saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lora = checkpoint.write_lora

    def delete_first(*arguments: Any) -> str:
        shutil.rmtree(run.folder)
        return write_lora(*arguments)

    monkeypatch.setattr(checkpoint, "write_lora", delete_first)
    with pytest.raises(StorageError, match="the run folder is gone"):
        save(saver, 1)
    assert not run.folder.exists()


def flip(file: Path, place: int, bit: int = 1) -> None:
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= bit
    file.write_bytes(content)


def cut(file: Path, place: int) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: place % len(content)])


def lose(file: Path, place: int) -> None:
    file.unlink()


FILES = [
    *("mug.safetensors", "state/adapter.safetensors", "state/average.safetensors", "state/optimizer.safetensors"),
    *(STATE_COPY, "state.json", MANIFEST),
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip, cut, lose])
def test_any_damage_of_any_file_is_named_and_the_checkpoint_before_is_used(
    run: Run, saver: Saver, events: list[Event], name: str, damage: Callable[[Path, int], None]
) -> None:
    save(saver, 1, 2)
    kept = shutil.copytree(run.checkpoint_folder(2), run.folder / "kept")
    size = (kept / name).stat().st_size
    # Every byte of what is small; of the others, places all over them.
    for place in range(0, size, max(1, size // 150)) if damage is not lose else [0]:
        events.clear()
        damage(run.checkpoint_folder(2) / name, place)
        newest = last_good_checkpoint(run, events.append)
        assert newest == run.checkpoint_folder(1), f"byte {place}"
        (warning,) = (event for event in events if isinstance(event, Warning))
        assert name in str(warning.where) or (name, damage) == (MANIFEST, lose)
        shutil.rmtree(run.folder / "checkpoints" / "damaged-step-000002")
        shutil.copytree(kept, run.checkpoint_folder(2))
    assert holds(run.checkpoint_folder(1), SmallState(1))


@pytest.mark.parametrize("damage", [flip, cut, lose])
def test_any_damage_of_run_json_is_seen_and_the_run_is_known_from_its_checkpoints(
    run: Run, saver: Saver, damage: Callable[[Path, int], None]
) -> None:
    save(saver, 1, 2)
    before = Run.open(run.folder).state
    file = run.folder / "run.json"
    kept = file.read_bytes()
    for place in range(len(kept)) if damage is not lose else [0]:
        damage(file, place)
        again = Run.open(run.folder)
        assert again.trouble is not None, f"byte {place}"
        known = ("step", "checkpoint", "facts", "accepted", "created")
        assert [getattr(again.state, name) for name in known] == [getattr(before, name) for name in known]
        file.write_bytes(kept)


def test_work_is_done_again_after_pauses_only_where_waiting_can_help(events: list[Event]) -> None:
    errors = [errno.ENOSPC, errno.EIO]

    def work() -> str:
        if errors:
            number = errors.pop()
            raise StorageError("it failed") from OSError(number, os.strerror(number))
        return "done"

    assert patiently(work, "writing", events.append, (0.0, 0.0)) == "done"
    assert len(warnings(events)) == 2
    errors.append(errno.EROFS)
    with pytest.raises(StorageError):
        patiently(work, "writing", events.append, (0.0,))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_real_disk_that_runs_full_keeps_what_was_saved_and_goes_on_once_there_is_space(
    small_disk: Path, events: list[Event]
) -> None:
    run = new_run(small_disk / "mug")
    saver = Saver(run, Retention(run, 9, every=0), events.append, pauses=(0.0,))
    save(saver, 1)
    filling = small_disk / "filling"
    with suppress(OSError), open(filling, "wb", buffering=0) as file:
        while file.write(b"x" * 1024):
            pass
    with pytest.raises(StorageError, match="no space left on device") as failure:
        save(saver, 2)
    assert "free some disk space" in str(failure.value.hint)
    assert last_good_checkpoint(run, events.append) == run.checkpoint_folder(1)
    assert holds(run.checkpoint_folder(1), SmallState(1))
    filling.unlink()
    with run.locked():
        save(saver, 2)
    assert names(run) == ["step-000001", "step-000002"]
    assert holds(run.checkpoint_folder(2), SmallState(2))
