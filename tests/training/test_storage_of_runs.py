"""Whole runs on disks that fail: what they say, what they keep, where they go on."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Trained, plain_config, stop_after, train_in

from fluxtune.config.schema import Config
from fluxtune.errors import ExitCode, Stopped, StorageError
from fluxtune.events import Checkpoint, Event, Resumed, Step, Warning
from fluxtune.runs import Run
from fluxtune.training import outputs, saving
from fluxtune.training.run import train


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def config(tiny_flux: Path, few_pictures: Path) -> Config:
    return plain_config(tiny_flux, few_pictures, training__steps=3, checkpoints__every=1)


@pytest.fixture(scope="module")
def unbroken(tiny_flux: Path, few_pictures: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    config = plain_config(tiny_flux, few_pictures, training__steps=3, checkpoints__every=1)
    return train_in(tmp_path_factory.mktemp("unbroken") / "mug", config, cache=cache)


def same_result(one: Trained, other: Trained) -> bool:
    return all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


def problems(run: Trained) -> list[Warning]:
    return [event for event in run.seen(Warning) if event.where and str(run.folder) in event.where]


@pytest.fixture
def fails_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[int]], None]:
    """Renaming a file or folder to this name fails with these errors, one after the other, then works."""
    real = os.replace
    monkeypatch.setattr(saving, "PAUSES", (0.0, 0.0))

    def fail(name: str, errors: list[int]) -> None:
        def replace(source: Any, target: Any) -> None:
            if str(target).endswith(name) and errors:
                number = errors.pop(0)
                raise OSError(number, os.strerror(number))
            real(source, target)

        monkeypatch.setattr(os, "replace", replace)

    return fail


@pytest.mark.parametrize("name", ["/step-000002", "/step-000003", "/mug/mug.safetensors"])
def test_a_disk_that_is_full_for_a_while_costs_warnings_and_nothing_else(
    config: Config,
    cache: Path,
    tmp_path: Path,
    unbroken: Trained,
    fails_at: Callable[[str, list[int]], None],
    name: str,
) -> None:
    fails_at(name, [errno.ENOSPC, errno.ENOSPC])
    run = train_in(tmp_path / "mug", config, cache=cache)
    assert problems(run)
    assert all("no space left" in each.message for each in problems(run))
    assert [event.step for event in run.seen(Checkpoint)] in ([1, 2, 3], [1, 3])
    assert same_result(run, unbroken)


def test_a_disk_that_stays_full_ends_the_run_with_the_last_checkpoint_whole(
    config: Config, cache: Path, tmp_path: Path, unbroken: Trained, fails_at: Callable[[str, list[int]], None]
) -> None:
    full = [errno.ENOSPC] * 9
    fails_at("/step-000003", full)
    run = tmp_path / "mug"
    with pytest.raises(StorageError, match="no space left") as failure:
        train_in(run, config, cache=cache)
    assert failure.value.exit_code == ExitCode.STORAGE
    assert Run.open(run).state.status == "failed"
    full.clear()
    again = train_in(run, config, cache=cache, resume=run)
    assert [event.step for event in again.seen(Resumed)] == [2]
    assert same_result(again, unbroken)


def test_a_run_for_which_there_is_no_space_is_refused_before_its_first_step(
    config: Config, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage
    nearly_full = shutil._ntuple_diskusage(2**30, 2**30, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: nearly_full if Path(path).name == "mug" else real(path))
    events: list[Event] = []
    monkeypatch.setenv("FLUXTUNE_CACHE", str(cache))
    with pytest.raises(
        StorageError, match=r"3 checkpoints and the result need .* MiB of disk, but only 0\.0 MiB"
    ) as error:
        train(config, output=tmp_path / "mug", on_event=events.append)
    assert (error.value.exit_code, error.value.where) == (ExitCode.STORAGE, str(tmp_path / "mug"))
    assert not [event for event in events if isinstance(event, Step)]
    assert not (tmp_path / "mug").exists()


def test_the_space_that_is_asked_for_is_what_a_checkpoint_takes(unbroken: Trained, monkeypatch: Any) -> None:
    asked: list[int] = []
    monkeypatch.setattr(outputs, "require_space", lambda folder, needed, purpose: asked.append(needed))
    again = shutil.copytree(unbroken.folder, unbroken.folder.with_name("again"))
    longer = unbroken.config.training.model_copy(update={"steps": 4})
    config = unbroken.config.model_copy(update={"training": longer})
    train_in(again, config, cache=unbroken.cache, resume=again)
    checkpoint = sum(path.stat().st_size for path in (again / "checkpoints" / "step-000004").rglob("*.*"))
    result = next(again.glob("*.safetensors")).stat().st_size
    assert asked == [pytest.approx(checkpoint + result, rel=0.1)]


@pytest.mark.parametrize("content", [None, "", '{"schema": 1'])
def test_a_run_that_lost_its_run_json_goes_on_from_its_last_checkpoint_and_says_so(
    config: Config, cache: Path, tmp_path: Path, unbroken: Trained, content: str | None
) -> None:
    run = tmp_path / "mug"
    with pytest.raises(Stopped):
        train_in(run, config, cache=cache, should_stop=stop_after(2))
    (run / "run.json").unlink()
    if content is not None:
        (run / "run.json").write_text(content)
    again = train_in(run, config, cache=cache, resume=run)
    assert [event.where for event in again.seen(Warning) if "run.json" in event.message] == [str(run / "run.json")]
    assert [event.step for event in again.seen(Resumed)] == [2]
    assert same_result(again, unbroken)
    assert Run.open(run).state.status == "finished"


def test_a_record_that_cannot_be_written_for_a_while_does_not_end_a_run(
    config: Config, cache: Path, tmp_path: Path, unbroken: Trained
) -> None:
    run, seen = tmp_path / "mug", []
    aside = tmp_path / "events so far"

    def block(event: Event) -> None:
        seen.append(event)
        if isinstance(event, Step) and event.step == 1:
            (run / "events.jsonl").rename(aside)
            (run / "events.jsonl").mkdir()
        if isinstance(event, Step) and event.step == 3:
            (run / "events.jsonl").rmdir()
            aside.rename(run / "events.jsonl")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLUXTUNE_CACHE", str(cache))
        train(config, output=run, on_event=block)
    assert sum("without its record" in event.message for event in seen if isinstance(event, Warning)) == 1
    told = Trained(run, seen, config, cache)
    assert [row["step"] for row in told.record() if row["event"] == "step"] == [1, 2, 3]
    assert same_result(told, unbroken)


def test_previews_that_do_not_fit_on_the_disk_are_missing_and_nothing_else(
    tiny_flux: Path,
    few_pictures: Path,
    cache: Path,
    tmp_path: Path,
    unbroken: Trained,
    fails_at: Callable[[str, list[int]], None],
) -> None:
    every = {"training__steps": 3, "checkpoints__every": 1, "previews__every": 3}
    fails_at("step-000003/00-seed7.png", [errno.ENOSPC])
    run = train_in(tmp_path / "mug", plain_config(tiny_flux, few_pictures, **every), cache=cache)
    assert [each.message.partition(":")[0] for each in problems(run)] == ["previews of step 3 are missing"]
    assert [path.name for path in (run.folder / "previews").iterdir() if list(path.iterdir())] == ["step-000000"]
    assert same_result(run, unbroken)


def test_a_run_folder_that_is_deleted_meanwhile_ends_the_run_with_one_clear_error(
    tiny_flux: Path, few_pictures: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = tmp_path / "mug", plain_config(tiny_flux, few_pictures, training__steps=3)

    def delete(event: Event) -> None:
        if isinstance(event, Step) and event.step == 2:
            shutil.rmtree(run)

    monkeypatch.setenv("FLUXTUNE_CACHE", str(cache))
    with pytest.raises(StorageError, match="the run folder is gone") as failure:
        train(config, output=run, on_event=delete)
    assert failure.value.where == str(run)
    assert not run.exists()
