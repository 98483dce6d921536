"""How runs end that do not finish: what their callers hear, and what their records say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import plain_config, stop_after, train_in

from fluxtune.config.dataset import FolderConfig
from fluxtune.config.schema import Config
from fluxtune.errors import ConfigError, DataError, ExitCode, OutOfMemoryError, Stopped, StorageError, UsageError
from fluxtune.events import Event, Phase, Step, Warning
from fluxtune.runs import Run
from fluxtune.training import loop as loop_module
from fluxtune.training import relief
from fluxtune.training import run as run_module
from fluxtune.training.run import train

CPU_IS_FULL = "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried 9 bytes."


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the runs of this file share, so that only the first one encodes."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def config(tiny_flux: Path, few_pictures: Path) -> Config:
    return plain_config(tiny_flux, few_pictures, training__steps=2)


@pytest.fixture
def step_fails(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Make every training step raise an error, but for so many micro-batches at first."""
    real = loop_module.learn

    def fail_with(error: BaseException, after: int = 0) -> None:
        left = [after]

        def fail(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise error
            return real(*arguments)

        monkeypatch.setattr(loop_module, "learn", fail)

    return fail_with


@pytest.fixture
def nowhere(tmp_path: Path, few_pictures: Path) -> Callable[..., Config]:
    """Settings whose base model cannot be had: what is told of them was found out before anything is downloaded."""
    return lambda **changes: plain_config(tmp_path / "no base", few_pictures, **changes)


def ending(run: Path) -> tuple[str, dict[str, Any]]:
    """The status of a run that nobody holds any more, and the last event of its record."""
    assert not (run / "lock").exists()
    return Run.open(run).state.status, json.loads((run / "events.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError(CPU_IS_FULL),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "cublas", "python"],
)
def test_a_step_that_does_not_fit_in_memory_says_what_to_make_smaller(
    config: Config, cache: Path, tmp_path: Path, step_fails: Callable[..., None], error: Exception
) -> None:
    step_fails(error)
    with pytest.raises(OutOfMemoryError, match="does not fit in memory") as failure:
        train_in(tmp_path / "mug", config, cache=cache)
    assert failure.value.exit_code == 4
    assert str(error) in failure.value.message
    assert "smaller preset" in str(failure.value.hint)
    assert not (tmp_path / "mug").exists()


def test_a_run_that_is_refused_before_its_first_step_leaves_nothing_and_is_begun_by_the_same_command(
    tiny_flux: Path, few_pictures: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = plain_config(tiny_flux, few_pictures, training__steps=1, previews__every=1)
    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "rehearse", fail_as_if_full)
        with pytest.raises(OutOfMemoryError):
            train_in(tmp_path / "mug", config, cache=cache)
    assert list(tmp_path.iterdir()) == []
    begun = train_in(tmp_path / "mug", config, cache=cache)
    assert [step.step for step in begun.seen(Step)] == [1]


def test_what_is_of_use_to_somebody_is_not_removed_with_a_run_that_is_refused(
    config: Config, cache: Path, tmp_path: Path, step_fails: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relief, "PAUSES", ())
    step_fails(MemoryError(), after=1)
    with pytest.raises(OutOfMemoryError):
        train_in(tmp_path / "stepped", config, cache=cache)
    status, last = ending(tmp_path / "stepped")
    assert (status, last["event"], last["code"]) == ("failed", "error", 4)

    def put_a_note(event: Event) -> None:
        if isinstance(event, Phase) and event.name == "train":
            (tmp_path / "noted" / "note.txt").write_text("mine")

    with pytest.raises(OutOfMemoryError), pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLUXTUNE_CACHE", str(cache))
        train(config, output=tmp_path / "noted", on_event=put_a_note)
    assert ending(tmp_path / "noted")[0] == "failed"
    assert (tmp_path / "noted" / "note.txt").read_text() == "mine"


def fail_as_if_full(*_: object) -> None:
    raise MemoryError


def test_pictures_that_do_not_fit_in_memory_are_no_bug(
    nowhere: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(run_module, "preflight", fail)
    with pytest.raises(OutOfMemoryError):
        train(nowhere(), output=tmp_path / "mug")
    assert not (tmp_path / "mug").exists()


def test_an_error_of_the_device_that_is_not_of_memory_stays_what_it_is(
    config: Config, cache: Path, tmp_path: Path, step_fails: Callable[..., None]
) -> None:
    step_fails(RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        train_in(tmp_path / "mug", config, cache=cache)
    status, last = ending(tmp_path / "mug")
    assert (status, last["code"]) == ("failed", 1)


def test_an_unexpected_failure_passes_and_is_on_record(
    config: Config, cache: Path, tmp_path: Path, step_fails: Callable[..., None]
) -> None:
    step_fails(ZeroDivisionError("oops"))
    with pytest.raises(ZeroDivisionError):
        train_in(tmp_path / "mug", config, cache=cache)
    status, last = ending(tmp_path / "mug")
    assert (status, last["event"], last["code"]) == ("failed", "error", 1)
    assert last["message"] == "unexpected ZeroDivisionError: oops"


def test_the_record_names_every_problem_as_the_command_does(
    config: Config, cache: Path, tmp_path: Path, step_fails: Callable[..., None]
) -> None:
    step_fails(ConfigError([UsageError("one", where="a", hint="b"), UsageError("two")]), after=1)
    with pytest.raises(ConfigError):
        train_in(tmp_path / "mug", config, cache=cache)
    _, last = ending(tmp_path / "mug")
    assert last["message"] == "2 problems in the configuration"
    assert [problem["message"] for problem in last["problems"]] == ["one", "two"]


def interrupt_at(phase: str) -> Callable[[Event], None]:
    """A sink at which an interruption arrives when a phase begins."""

    def emit(event: Event) -> None:
        if isinstance(event, Phase) and event.name == phase:
            raise KeyboardInterrupt

    return emit


@pytest.mark.parametrize("phase", ["encode captions", "encode pictures", "load"])
def test_an_interruption_that_was_asked_for_stops_the_run_before_its_first_step(
    config: Config, tmp_path: Path, phase: str
) -> None:
    run = tmp_path / "mug"
    with pytest.raises(Stopped, match="before training began") as stop:
        train(config, output=run, on_event=interrupt_at(phase), should_stop=lambda: ExitCode.TERMINATED)
    assert (stop.value.exit_code, stop.value.hint) == (143, f"go on with: fluxtune train --resume {run}")
    status, last = ending(run)
    assert (status, last["code"], last["hint"]) == ("stopped", 143, stop.value.hint)


def test_an_interruption_that_nobody_asked_for_passes_and_the_run_is_stopped(config: Config, tmp_path: Path) -> None:
    run = tmp_path / "mug"
    with pytest.raises(KeyboardInterrupt):
        train(config, output=run, on_event=interrupt_at("load"))
    status, last = ending(run)
    assert (status, last["event"], last["code"]) == ("stopped", "error", 130)


def test_a_stop_before_the_first_step_trains_nothing_and_can_be_resumed(
    config: Config, cache: Path, tmp_path: Path
) -> None:
    run = tmp_path / "mug"
    with pytest.raises(Stopped, match="after step 0 of 2"):
        train_in(run, config, cache=cache, should_stop=lambda: ExitCode.INTERRUPTED)
    assert not (run / "checkpoints").exists()
    assert ending(run)[0] == "stopped"
    again = train_in(run, config, cache=cache, resume=run)
    assert [step.step for step in again.seen(Step)] == [1, 2]


def test_an_output_that_exists_is_refused_before_the_base_model_is_looked_for(
    nowhere: Callable[..., Config], tmp_path: Path
) -> None:
    (tmp_path / "mug").mkdir()
    with pytest.raises(StorageError, match="exists already"):
        train(nowhere(), output=tmp_path / "mug")


def test_a_folder_that_is_no_run_is_not_resumed_before_the_base_model_is_looked_for(
    nowhere: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        train(nowhere(), output=tmp_path / "mug", resume=tmp_path / "mug")


def test_a_lora_to_start_from_that_is_not_there_is_told_before_the_base_model_is_looked_for(
    nowhere: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no such LoRA file"):
        train(nowhere(lora__init_from=str(tmp_path / "mgu.safetensors")), output=tmp_path / "mug")
    assert not (tmp_path / "mug").exists()


def test_a_folder_of_pictures_that_is_not_there_is_told_before_the_base_model_is_looked_for(
    nowhere: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no such folder"):
        train(nowhere(dataset__folders=[FolderConfig(path=str(tmp_path / "photso"))]), output=tmp_path / "mug")


def started_from(lora: Path, config: Config, **changes: object) -> Config:
    """The configuration with a LoRA to start from."""
    return config.model_copy(update={"lora": config.lora.model_copy(update={"init_from": str(lora), **changes})})


def test_a_lora_to_start_from_that_does_not_fit_is_told_before_anything_is_encoded(
    config: Config, cache: Path, tmp_path: Path
) -> None:
    start = train_in(tmp_path / "start", config, cache=cache).file
    changed = started_from(start, config, rank=config.lora.rank - 1)
    with pytest.raises(UsageError, match=f"the configuration asks for rank {config.lora.rank - 1}"):
        train(changed, output=tmp_path / "mug")
    assert not (tmp_path / "mug").exists()


def test_the_folder_of_a_run_or_of_a_checkpoint_to_start_from_stands_for_its_lora(
    config: Config, cache: Path, tmp_path: Path
) -> None:
    start = train_in(tmp_path / "start", config, cache=cache)
    files = {"file": start.file, "run": start.folder, "checkpoint": start.folder / "checkpoints" / "step-000002"}
    begun = {}
    for name, file in files.items():
        with pytest.raises(Stopped):
            train_in(tmp_path / name, started_from(file, config), cache=cache, should_stop=stop_after(1))
        begun[name] = load_file(tmp_path / name / "checkpoints" / "step-000001" / f"{name}.safetensors")
    assert all(torch.equal(tensor, begun["file"][key]) for each in begun.values() for key, tensor in each.items())
    assert any(not torch.equal(tensor, start.tensors[key]) for key, tensor in begun["file"].items())


def test_a_run_of_more_layers_than_the_lora_has_that_it_starts_from_says_so_once(
    config: Config, cache: Path, tmp_path: Path
) -> None:
    start = train_in(tmp_path / "start", config, cache=cache).file
    run = train_in(tmp_path / "mug", started_from(start, config, targets="attention+mlp"), cache=cache)
    told = [event for event in run.seen(Warning) if event.where == str(start)]
    assert [event.message for event in told] == [
        "this LoRA has 22 of the 34 layers of lora.targets: the other 12 begin at zero"
    ]
    assert len(run.tensors) == 2 * 34


def test_a_resumed_run_no_longer_needs_the_lora_that_it_started_from(
    config: Config, cache: Path, tmp_path: Path
) -> None:
    start = train_in(tmp_path / "start", config, cache=cache).file
    changed = started_from(start, config)
    run = tmp_path / "mug"
    with pytest.raises(Stopped):
        train_in(run, changed, cache=cache, should_stop=stop_after(1))
    start.unlink()
    assert train_in(run, changed, cache=cache, resume=run).file.is_file()


def test_how_to_go_on_can_be_pasted_where_the_folder_has_spaces(config: Config, cache: Path, tmp_path: Path) -> None:
    run = tmp_path / "my mug"
    with pytest.raises(Stopped) as stop:
        train_in(run, config, cache=cache, should_stop=lambda: ExitCode.INTERRUPTED)
    assert stop.value.hint == f"go on with: fluxtune train --resume '{run}'"


def test_a_pattern_that_names_no_layer_is_told_before_anything_is_encoded(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path
) -> None:
    config = plain_config(tiny_flux, few_pictures, lora__targets=["*.to_q", "*.to_qq"])
    with pytest.raises(ConfigError, match=r"to_qq' matches no linear layer"):
        train(config, output=tmp_path / "mug")
    assert not (tmp_path / "mug").exists()
