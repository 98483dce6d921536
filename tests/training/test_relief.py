"""Steps that no longer fit in memory: what is given up, and that nothing is lost and nothing learned differently."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cramped import Cramped
from tiny_runs import Trained, plain_config, train_in

from fluxtune.config.memory import MemoryConfig
from fluxtune.config.model import ModelConfig
from fluxtune.config.schema import Config
from fluxtune.errors import ExitCode, OutOfMemoryError, Stopped
from fluxtune.events import Checkpoint, Event, Preview, RolledBack, Step, Warning
from fluxtune.flux.base import open_base
from fluxtune.memory.activations import ActivationOffload
from fluxtune.runs import Run
from fluxtune.training import loop, relief
from fluxtune.training import run as run_module
from fluxtune.training.planning import foretold
from fluxtune.training.run import train
from fluxtune.training.rungs import lower_rungs, rungs_that_fit
from fluxtune.training.simulation import Work

STEPS = 5
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
Make = Callable[..., Config]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def config(tiny_flux: Path, few_pictures: Path) -> Make:
    """A run that recomputes nothing, with dropout, a moving average and two micro-batches a step."""

    def make(**changes: Any) -> Config:
        settings = {
            "training__steps": STEPS,
            "training__accumulation": 2,
            "training__ema_decay": 0.5,
            "lora__dropout": 0.2,
        }
        return plain_config(tiny_flux, few_pictures, **{**settings, **changes})

    return make


@pytest.fixture(scope="module")
def plain(config: Make, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The run with all the memory that it wants."""
    return train_in(tmp_path_factory.mktemp("plain") / "mug", config(), cache=cache)


@pytest.fixture
def short_of_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Makes the second micro-batch of a step run out of memory so many times; returns the steps that were tried."""

    def make(step: int, times: int) -> list[int]:
        tried: list[int] = []
        learn, look = loop.learn, loop.Foresight.look

        def watched(self: Any, number: int) -> None:
            tried.append(number + 1)
            calls["of the step"] = 0
            look(self, number)

        def full(*given: Any) -> torch.Tensor:
            loss = learn(*given)
            calls["of the step"] += 1
            if tried[-1] == step and calls["of the step"] == 2 and calls["failed"] < times:
                calls["failed"] += 1
                raise FULL
            return loss

        calls = {"of the step": 0, "failed": 0}
        monkeypatch.setattr(loop.Foresight, "look", watched)
        monkeypatch.setattr(loop, "learn", full)
        return tried

    return make


def same_as(plain: Trained, run: Trained) -> None:
    assert [(step.step, step.loss, step.grad_norm) for step in run.seen(Step)] == [
        (step.step, step.loss, step.grad_norm) for step in plain.seen(Step)
    ]
    assert all(torch.equal(tensor, plain.tensors[name]) for name, tensor in run.tensors.items())


def told(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Warning) and "memory" in event.message]


def test_a_run_from_which_memory_is_taken_recomputes_and_learns_the_same(
    config: Make, plain: Trained, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Cramped()
    most: dict[int, int] = {}

    def watch(event: Event) -> None:
        if isinstance(event, Step):
            most[event.step], card.most = card.most, 0
            if event.step == 3:
                card.limit = limit

    def under_watch(folder: Path, settings: Config) -> list[Event]:
        events: list[Event] = []
        most.clear()
        with card:
            train(settings, output=folder, on_event=lambda event: (events.append(event), watch(event))[0])
        return events

    monkeypatch.setenv("FLUXTUNE_CACHE", str(cache))
    limit = None
    under_watch(tmp_path / "all", config(memory__recompute="all"))
    little = max(most[step] for step in (2, 3, 4))
    under_watch(tmp_path / "none", config())
    much = max(most[step] for step in (2, 3, 4))
    assert little < 0.9 * much
    limit = (little + much) // 2
    events = under_watch(tmp_path / "mug", config())
    same_as(plain, Trained(tmp_path / "mug", events, config(), cache))
    assert most[3] > limit
    # The step that failed counts as well: it went over the limit once, and was given up.
    assert most[5] <= limit
    assert [event.step for event in events if isinstance(event, Checkpoint)] == [3, STEPS]
    assert "step 4 did not fit in memory any more (CUDA out of memory." in told(events)[0]
    assert "blocks" in told(events)[-1]


def test_a_step_is_tried_again_from_where_it_was_with_less_and_less(
    config: Make,
    plain: Trained,
    cache: Path,
    tmp_path: Path,
    short_of_memory: Callable[..., list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ActivationOffload, "smallest", 1)
    rungs = len(lower_rungs(config().memory, (2, 2)))
    tried = short_of_memory(step=3, times=rungs)
    run = train_in(tmp_path / "mug", config(), cache=cache)
    same_as(plain, run)
    assert tried == [1, 2, *[3] * (rungs + 1), 4, 5]
    ways = [message.partition("trying it again with ")[2] for message in told(run.events)]
    assert ways == [
        "fp32 base, of 4 blocks 4 keep products",
        "fp32 base, of 4 blocks 4 keep attention",
        "fp32 base, all 4 blocks recomputed",
        "fp32 base, all 4 blocks recomputed, activations wait in system memory",
        *[
            f"fp32 base, all 4 blocks recomputed, activations wait in system memory, {number} blocks streamed"
            for number in (1, 2, 4)
        ],
    ]
    assert [event.step for event in run.seen(Checkpoint)] == [2, STEPS]


def test_memory_that_comes_free_again_is_waited_for(
    config: Make,
    plain: Trained,
    cache: Path,
    tmp_path: Path,
    short_of_memory: Callable[..., list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses = [0.0, 0.01, 0.02]
    monkeypatch.setattr(relief, "PAUSES", tuple(pauses))
    rungs = len(lower_rungs(config().memory, (2, 2)))
    tried = short_of_memory(step=3, times=rungs + 3)
    run = train_in(tmp_path / "mug", config(), cache=cache)
    same_as(plain, run)
    assert tried.count(3) == rungs + 4
    assert sum("trying it again in" in message for message in told(run.events)) == 3


def test_where_waiting_does_not_help_everything_is_saved_and_the_run_can_be_resumed(
    config: Make,
    plain: Trained,
    cache: Path,
    tmp_path: Path,
    short_of_memory: Callable[..., list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "mug"
    with monkeypatch.context() as patch:
        patch.setattr(relief, "PAUSES", (0.0, 0.0))
        patch.setattr(loop.Foresight, "look", loop.Foresight.look)
        patch.setattr(loop, "learn", loop.learn)
        short_of_memory(step=3, times=10**6)
        with pytest.raises(OutOfMemoryError, match=r"step 3, .* does not fit in memory .*CUDA out of memory") as error:
            train_in(run, config(), cache=cache)
    assert error.value.exit_code == 4
    assert "close what else takes memory of the card" in str(error.value.hint)
    assert str(error.value.hint).endswith(f"fluxtune train --resume {run}")
    assert Run.open(run).state.status == "failed"
    monkeypatch.undo()
    again = train_in(run, config(), cache=cache, resume=run)
    assert [step.step for step in again.seen(Step)] == [3, 4, 5]
    assert all(torch.equal(tensor, plain.tensors[name]) for name, tensor in again.tensors.items())


def test_a_stop_is_heard_while_the_run_waits(
    config: Make,
    cache: Path,
    tmp_path: Path,
    short_of_memory: Callable[..., list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relief, "PAUSES", (3600.0,))
    monkeypatch.setattr(relief, "_GLANCE", 0.01)
    short_of_memory(step=3, times=10**6)
    asked: list[ExitCode] = []

    def listen(event: Event) -> None:
        if isinstance(event, Warning) and "trying it again in 3600 s" in event.message:
            asked.append(ExitCode.TERMINATED)

    monkeypatch.setenv("FLUXTUNE_CACHE", str(cache))
    with pytest.raises(Stopped, match="after step 2 of 5"):
        train(config(), output=tmp_path / "mug", on_event=listen, should_stop=lambda: asked[0] if asked else None)


def test_an_update_that_failed_half_way_is_undone_by_going_back_to_what_was_saved(
    config: Make, plain: Trained, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, calls = torch.optim.AdamW.step, []

    def half_way(self: Any, closure: Any = None) -> None:
        calls.append(1)
        if len(calls) == 4:
            step(self)
            for group in self.param_groups:
                group["params"][0].data += 1.0
            raise FULL
        step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", half_way)
    run = train_in(tmp_path / "mug", config(checkpoints__every=2), cache=cache)
    assert run.seen(RolledBack) == [RolledBack(2, str(run.folder / "checkpoints" / "step-000002"), 1.0)]
    assert [step.step for step in run.seen(Step)] == [1, 2, 3, 3, 4, 5]
    assert all(torch.equal(tensor, plain.tensors[name]) for name, tensor in run.tensors.items())


def test_an_update_that_failed_half_way_goes_back_to_what_was_saved_last_whatever_for(
    config: Make,
    plain: Trained,
    cache: Path,
    tmp_path: Path,
    short_of_memory: Callable[..., list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step, updates = torch.optim.AdamW.step, list[int]()
    short_of_memory(step=4, times=1)

    def fail_the_fourth(self: Any, closure: Any = None) -> None:
        updates.append(1)
        step(self)
        if len(updates) == 4:
            raise FULL

    monkeypatch.setattr(torch.optim.AdamW, "step", fail_the_fourth)
    run = train_in(tmp_path / "mug", config(checkpoints__every=2), cache=cache)
    # Before the update failed, memory had run out in the same step, and the state was saved.
    assert run.seen(RolledBack) == [RolledBack(3, str(run.folder / "checkpoints" / "step-000003"), 1.0)]
    assert [step.step for step in run.seen(Step)] == [1, 2, 3, 4, 5]
    assert all(torch.equal(tensor, plain.tensors[name]) for name, tensor in run.tensors.items())


def test_memory_is_waited_for_also_where_the_run_went_back_to_its_first_step(
    config: Make, plain: Trained, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, learn, updates, left = torch.optim.AdamW.step, loop.learn, list[int](), list[int]()
    monkeypatch.setattr(relief, "PAUSES", (0.0,))

    def fail_the_second(self: Any, closure: Any = None) -> None:
        updates.append(1)
        if len(updates) == 2:
            left.extend(range(len(lower_rungs(config().memory, (2, 2)))))
            raise FULL
        step(self)

    def fail_until_nothing_is_left_to_give_up(*given: Any) -> torch.Tensor:
        if left:
            left.pop()
            raise FULL
        return learn(*given)

    monkeypatch.setattr(torch.optim.AdamW, "step", fail_the_second)
    monkeypatch.setattr(loop, "learn", fail_until_nothing_is_left_to_give_up)
    run = train_in(tmp_path / "mug", config(), cache=cache)
    assert [event.step for event in run.seen(RolledBack)] == [0]
    assert [step.step for step in run.seen(Step)] == [1, 1, 2, 3, 4, 5]
    assert "step 1 does not fit in memory; trying it again in 0 s" in told(run.events)
    assert all(torch.equal(tensor, plain.tensors[name]) for name, tensor in run.tensors.items())


def test_what_does_not_fit_in_the_first_place_is_held_in_less_memory_and_never_waited_for(
    config: Make, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relief, "PAUSES", (3600.0,))

    def full(*_: Any) -> None:
        raise FULL

    monkeypatch.setattr(loop, "rehearse", full)
    with pytest.raises(OutOfMemoryError, match="this training does not fit in memory") as error:
        train_in(tmp_path / "mug", config(), cache=cache)
    assert "smaller preset" in str(error.value.hint)
    assert not (tmp_path / "mug" / "checkpoints").exists()


def test_previews_that_do_not_fit_are_left_out_and_training_goes_on_as_if_they_had_been_made(
    config: Make, plain: Trained, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fluxtune.training import previews

    made, generate = [], previews.generate

    def full(*given: Any) -> Any:
        made.append(1)
        if len(made) == 2:
            raise FULL
        return generate(*given)

    monkeypatch.setattr(previews, "generate", full)
    run = train_in(tmp_path / "mug", config(previews__every=2), cache=cache)
    same_as(plain, run)
    assert [event.step for event in run.seen(Preview)] == [0, 4, 5]
    (left_out,) = [message for message in told(run.events) if "previews" in message]
    assert left_out.startswith("previews of step 2 are missing: they did not fit in memory (CUDA out of memory.")


def test_each_rung_takes_less_than_the_one_before() -> None:
    memory = MemoryConfig.model_validate(
        {"keep": {"attention": [1], "products": [2, 3], "everything": [1, 1]}, "streamed_blocks": 10}
    )
    rungs = lower_rungs(memory, (19, 38))
    kept = [{name: numbers for name, numbers in vars(rung.keep).items() if numbers} for rung in rungs]
    assert kept[:3] == [
        {"attention": [1, 0], "products": [3, 4]},
        {"attention": [4, 4]},
        {},
    ]
    assert [(rung.offload_activations, rung.streamed_blocks) for rung in rungs[3:]] == [
        (True, 10),
        (True, 14),
        (True, 28),
        (True, 57),
    ]
    assert lower_rungs(rungs[-1], (19, 38)) == []


def test_with_a_plan_the_rungs_that_cannot_fit_are_left_out() -> None:
    settings = {"model": {"base": "nano"}, "memory": {"base_precision": "fp32", "recompute": "none"}}
    settings["training"] = {"batch_size": 4, "precision": "fp32"}
    work = Work(Config.model_validate(settings), open_base(ModelConfig(base="nano")), (256, 256), None)
    blocks = (2, 5)
    plenty = rungs_that_fit(replace(work, capacity=2**40), blocks)
    assert plenty == lower_rungs(work.config.memory, blocks)
    everything, nothing = foretold(work), foretold(work.with_memory(recompute="all"))
    between = rungs_that_fit(replace(work, capacity=(everything + nothing) // 2), blocks)
    # First what the planner would do, which keeps more than the first rung that fits.
    assert between[0] not in plenty
    assert nothing < foretold(work.with_memory(**between[0].model_dump())) <= (everything + nothing) // 2
    assert rungs_that_fit(replace(work, capacity=2**20), blocks)[1:] == plenty[-1:]


def test_the_pace_of_a_run_that_was_held_in_less_memory_is_not_that_of_its_plan(
    config: Make,
    cache: Path,
    tmp_path: Path,
    short_of_memory: Callable[..., list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[float] = []
    monkeypatch.setattr(run_module, "keep_pace", lambda work, device, seconds: kept.append(seconds))
    short_of_memory(step=3, times=1)
    run = train_in(tmp_path / "mug", config(memory__budget=4.0), cache=cache)
    assert told(run.events)
    assert kept == []


HOLDER = """
import torch
held = torch.empty(torch.cuda.mem_get_info()[0] - 2**20, dtype=torch.uint8, device="cuda")
print("holding", flush=True)
input()
"""


@pytest.mark.gpu
def test_a_run_on_a_card_gives_way_to_another_program_and_waits_until_it_is_gone(
    config: Make, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holders: list[subprocess.Popen[str]] = []

    def take_and_let_go(event: Event) -> None:
        if isinstance(event, Step) and event.step == 3:
            # What torch's allocator has it would keep.
            torch.cuda.empty_cache()
            command = [sys.executable, "-c", HOLDER]
            holders.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            assert holders[0].stdout is not None and holders[0].stdout.readline() == "holding\n"
        elif isinstance(event, Warning) and "trying it again in" in event.message:
            holders[0].communicate("gone\n")

    monkeypatch.setenv("FLUXTUNE_CACHE", str(cache))
    events: list[Event] = []
    settings = config(training__device="cuda")
    try:
        train(
            settings, output=tmp_path / "mug", on_event=lambda event: (events.append(event), take_and_let_go(event))[0]
        )
    finally:
        for holder in holders:
            holder.kill()
    assert [event.step for event in events if isinstance(event, Step)] == [1, 2, 3, 4, 5]
    assert any("blocks streamed" in message for message in told(events))
    assert any("trying it again in" in message for message in told(events))
