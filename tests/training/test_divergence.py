"""Numbers that are not finite: what is skipped, what is gone back to, what is told, and that a resume does the same."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import Trained, plain_config, stop_after, train_in

from fluxtune.config.schema import Config
from fluxtune.config.training import TrainingConfig
from fluxtune.dataset.cache import Store
from fluxtune.errors import DivergedError, Stopped
from fluxtune.events import Event, RolledBack, Step, Warning
from fluxtune.runs import Run
from fluxtune.training import loop
from fluxtune.training.ema import MovingAverage
from fluxtune.training.optimizers import make_optimizer
from fluxtune.training.run import train
from fluxtune.training.step import Learner, MicroBatch, learn

Make = Callable[..., Config]


@pytest.fixture(scope="module")
def cache(tiny_flux: Path, few_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with everything encoded."""
    folder = tmp_path_factory.mktemp("cache")
    train_in(folder / "first", plain_config(tiny_flux, few_pictures, training__steps=1), cache=folder)
    return folder


@pytest.fixture
def config(tiny_flux: Path, few_pictures: Path) -> Make:
    """One picture a step, and a moving average."""

    def make(**changes: Any) -> Config:
        quick = {"training__batch_size": 1, "training__ema_decay": 0.5, "checkpoints__every": 2, "checkpoints__keep": 9}
        return plain_config(tiny_flux, few_pictures, **{**quick, **changes})

    return make


@pytest.fixture
def nan_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes one weight of the base NaN in some steps, as long as the learning rate is what it is in the settings."""

    def make(steps: set[int], accumulation: int = 1) -> None:
        at = loop.SampleSource.at

        def watched(self: Any, micro_step: int) -> Any:
            now["step"] = micro_step // accumulation + 1
            return at(self, micro_step)

        def spoiled(learner: Learner, batch: MicroBatch) -> torch.Tensor:
            is_first_try = learner.optimizer.param_groups[0]["lr"] == 1e-3
            if now["step"] not in steps or not is_first_try:
                return learn(learner, batch)
            layer = learner.transformer.transformer_blocks[1].norm1.linear
            hook = layer.register_forward_hook(lambda _, __, output: output * torch.nan)
            try:
                return learn(learner, batch)
            finally:
                hook.remove()

        now = {"step": 0}
        monkeypatch.setattr(loop.SampleSource, "at", watched)
        monkeypatch.setattr(loop, "learn", spoiled)

    return make


def counters_in(checkpoint: Path) -> dict[str, float]:
    return dict(json.loads((checkpoint / "state.json").read_text())["counters"])


def warnings(run: Trained) -> list[str]:
    return [event.message for event in run.seen(Warning) if "skipped" in event.message]


def same(one: Path, other: Path) -> bool:
    tensors, others = load_file(one), load_file(other)
    return tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)


def last_records(events: list[Event]) -> dict[int, tuple[float, float, float, int]]:
    """Of each step the last record, without times and memory; a loss that is none as infinity."""
    steps = [event for event in events if isinstance(event, Step)]
    return {
        each.step: (
            each.loss if math.isfinite(each.loss) else math.inf,
            each.grad_norm if math.isfinite(each.grad_norm) else math.inf,
            each.learning_rate,
            each.skipped,
        )
        for each in steps
    }


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_spoiled_picture_costs_its_own_steps_and_nothing_else(
    config: Make, cache: Path, tmp_path: Path, bad: float
) -> None:
    (latents,) = cache.glob("latents-*")
    shard = next(latents.iterdir())
    keys = sorted({name.split("/")[0] for name in load_file(shard)})
    whole = {key: Store(latents).read(key) for key in keys}
    before = shard.read_bytes()
    shard.unlink()
    try:
        for key, entry in whole.items():
            spoil = bad if key == keys[0] else 1.0
            Store(latents).write(key, {name: tensor * spoil for name, tensor in entry.items()})
        run = train_in(tmp_path / "mug", config(), cache=cache)
    finally:
        for other in latents.iterdir():
            other.unlink()
        shard.write_bytes(before)
    skipped = [step.step for step in run.seen(Step) if not math.isfinite(step.loss)]
    assert len(skipped) == 2
    assert run.seen(Step)[-1].skipped == 2
    assert len({message.rpartition(" on ")[2] for message in warnings(run)}) == 1
    assert [message.partition(":")[0] for message in warnings(run)] == [f"step {step} was skipped" for step in skipped]
    assert all(tensor.isfinite().all() for tensor in run.tensors.values())
    assert not run.seen(RolledBack)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit"])
def test_a_bad_step_touches_neither_weights_nor_optimizer_nor_average(optimizer: Any) -> None:
    from accelerate import Accelerator

    parameter = torch.nn.Parameter(torch.randn(64, 64))
    accelerator = Accelerator(cpu=True)
    made = accelerator.prepare_optimizer(make_optimizer([parameter], TrainingConfig(optimizer=optimizer)))
    learner: Any = Learner(None, None, made, accelerator, [parameter], torch.float32, None, 1.0)  # type: ignore[arg-type]
    average = MovingAverage({"one": parameter}, 0.5)
    parameter.grad = torch.randn(64, 64)
    assert loop._move(learner, average, loop._Gradients(0.1, 0.2, 0))
    state = {name: value.clone() for name, value in made.state[parameter].items() if torch.is_tensor(value)}
    seen = parameter.detach().clone(), average.average["one"].clone(), average.updates
    parameter.grad = torch.full((64, 64), torch.nan)
    assert loop._move(learner, average, loop._Gradients(math.nan, math.nan, 0))
    assert parameter.grad is None
    assert torch.equal(parameter, seen[0]) and torch.equal(average.average["one"], seen[1])
    assert average.updates == seen[2]
    assert state and all(torch.equal(made.state[parameter][name], value) for name, value in state.items())


def test_weights_that_stop_being_finite_are_neither_averaged_nor_saved_and_the_run_learns_slower(
    config: Make, cache: Path, tmp_path: Path
) -> None:
    # With these every step multiplies the weights by -9, and after the first roll-back by 0.
    blown_up = config(
        training__learning_rate=1.0,
        training__weight_decay=10.0,
        training__steps=50,
        training__max_grad_norm=0.0,
        training__divergence={"patience": 1, "learning_rate_factor": 0.1},
        checkpoints__every=10,
    )
    run = train_in(tmp_path / "mug", blown_up, cache=cache)
    (back,) = run.seen(RolledBack)
    assert back.learning_rate_factor == 0.1
    assert {round(step.learning_rate, 6) for step in run.seen(Step)} == {1.0, 0.1}
    files = [run.file, *(run.folder / "checkpoints").rglob("*.safetensors")]
    assert len(files) > 10
    assert all(tensor.isfinite().all() for file in files for tensor in load_file(file).values())


def test_several_bad_steps_in_a_row_go_back_to_the_last_checkpoint_that_was_made_before_them(
    config: Make, cache: Path, tmp_path: Path, nan_at: Callable[..., None]
) -> None:
    nan_at({4, 5})
    settings = config(training__divergence={"patience": 2, "learning_rate_factor": 0.25})
    run = train_in(tmp_path / "mug", settings, cache=cache)
    assert [step.step for step in run.seen(Step)] == [1, 2, 3, 4, 5, 3, 4, 5, 6]
    # The checkpoint of step 4 was made between the two bad steps.
    back = RolledBack(2, str(run.folder / "checkpoints" / "step-000002"), 0.25)
    assert run.seen(RolledBack) == [back]
    assert run.seen(Step)[-1].learning_rate == 2.5e-4
    assert run.seen(Step)[-1].skipped == 0
    told = [event.message for event in run.seen(Warning) if "going back" in event.message]
    assert told[0].startswith("steps 4 to 5 were skipped because losses or gradients are not finite, on ")
    assert [folder.name for folder in Run.open(run.folder).checkpoints()] == [f"step-{n:06d}" for n in (2, 4, 6)]
    counters = counters_in(run.folder / "checkpoints" / "step-000006")
    assert counters == {"skipped": 0, "in_a_row": 0, "rollbacks": 1, "learning_rate_factor": 0.25}


@pytest.mark.parametrize(("keep", "stops"), [(1, []), (3, []), (1, [5]), (1, [3, 4, 5, 6])])
def test_what_a_run_can_go_back_to_is_kept_whatever_is_saved_within_a_row_of_bad_steps(
    config: Make, cache: Path, tmp_path: Path, nan_at: Callable[..., None], keep: int, stops: list[int]
) -> None:
    nan_at({4, 5, 6, 7})
    settings = config(
        training__divergence={"patience": 4}, training__steps=8, checkpoints__every=1, checkpoints__keep=keep
    )
    done = 0
    for stop in stops:
        with pytest.raises(Stopped):
            resume = {"resume": tmp_path / "mug"} if done else {}
            train_in(tmp_path / "mug", settings, cache=cache, should_stop=stop_after(stop - done), **resume)
        done = stop
    run = train_in(tmp_path / "mug", settings, cache=cache, **({"resume": tmp_path / "mug"} if done else {}))
    assert [event.step for event in run.seen(RolledBack)] == [3]
    kept = [f"step-{step:06d}" for step in range(9 - keep, 9)]
    assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == kept


def test_a_run_that_was_stopped_goes_back_to_where_the_unbroken_one_does_with_one_checkpoint_kept(
    config: Make, cache: Path, tmp_path: Path, nan_at: Callable[..., None]
) -> None:
    nan_at({4})
    settings = config(training__divergence={"patience": 1}, training__steps=4, checkpoints__keep=1)
    with pytest.raises(Stopped):
        train_in(tmp_path / "mug", settings, cache=cache, should_stop=stop_after(3))
    run = train_in(tmp_path / "mug", settings, cache=cache, resume=tmp_path / "mug")
    assert [event.step for event in run.seen(RolledBack)] == [2]
    assert [folder.name for folder in Run.open(run.folder).checkpoints()] == ["step-000004"]


@pytest.mark.parametrize(
    ("bad", "then"),
    [
        ({4, 5}, (2, "checkpoints/step-000002", "abandoned-step-000004", "step-000002")),
        ({2, 3}, (0, None, "abandoned-step-000002")),
    ],
)
def test_checkpoints_that_a_run_turned_back_from_are_aside_until_the_next_one_is_whole(
    config: Make,
    cache: Path,
    tmp_path: Path,
    nan_at: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    bad: set[int],
    then: tuple[Any, ...],
) -> None:
    nan_at(bad)
    checkpoints, seen = tmp_path / "mug" / "checkpoints", []

    def look(event: Event) -> None:
        if isinstance(event, RolledBack):
            state = Run.open(tmp_path / "mug").state
            seen.append((state.step, state.checkpoint, *sorted(path.name for path in checkpoints.iterdir())))

    monkeypatch.setenv("FLUXTUNE_CACHE", str(cache))
    train(config(training__divergence={"patience": 2}), output=tmp_path / "mug", on_event=look)
    assert seen == [then]
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-000002", "step-000004", "step-000006"]


def test_a_run_that_went_back_behind_where_it_was_resumed_is_saved_when_it_is_stopped(
    config: Make, cache: Path, tmp_path: Path, nan_at: Callable[..., None]
) -> None:
    settings = config(training__divergence={"patience": 2}, training__steps=8)
    with pytest.raises(Stopped):
        train_in(tmp_path / "mug", settings, cache=cache, should_stop=stop_after(5))
    nan_at({6, 7})
    with pytest.raises(Stopped, match="stopped after step 5"):
        train_in(tmp_path / "mug", settings, cache=cache, resume=tmp_path / "mug", should_stop=stop_after(3))
    run = Run.open(tmp_path / "mug")
    assert run.state.step == 5
    assert run.checkpoints()[-1].name == "step-000005"
    assert counters_in(run.checkpoints()[-1])["rollbacks"] == 1


def test_without_a_checkpoint_the_run_goes_back_to_its_beginning(
    config: Make, cache: Path, tmp_path: Path, nan_at: Callable[..., None]
) -> None:
    slower = config(training__learning_rate=5e-4, checkpoints__every=0, training__steps=4)
    plain = train_in(tmp_path / "plain" / "mug", slower, cache=cache)
    nan_at({3})
    settings = config(checkpoints__every=0, training__steps=4, training__divergence={"patience": 1})
    run = train_in(tmp_path / "mug", settings, cache=cache)
    assert run.seen(RolledBack) == [RolledBack(0, None, 0.5)]
    assert all(torch.equal(tensor, plain.tensors[name]) for name, tensor in run.tensors.items())


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_a_resumed_run_skips_and_goes_back_as_the_unbroken_one(
    config: Make, cache: Path, tmp_path: Path, nan_at: Callable[..., None], stop: int
) -> None:
    # Stopped before and between bad steps, which leaves a checkpoint there; and after the run went back.
    nan_at({2, 4, 5})
    settings = config(training__divergence={"patience": 2}, training__steps=7)
    unbroken = train_in(tmp_path / "unbroken" / "mug", settings, cache=cache)
    assert unbroken.seen(RolledBack) and unbroken.seen(Step)[-1].skipped == 1
    broken = tmp_path / "mug"
    with pytest.raises(Stopped):
        train_in(broken, settings, cache=cache, should_stop=stop_after(stop))
    again = train_in(broken, settings, cache=cache, resume=broken)
    assert same(again.file, unbroken.file)
    for state in ("adapter", "average", "optimizer"):
        name = f"checkpoints/step-000007/state/{state}.safetensors"
        assert same(broken / name, unbroken.folder / name)
    whole = last_records(unbroken.events)
    assert last_records(again.events).items() <= whole.items()
    assert counters_in(broken / "checkpoints/step-000007") == counters_in(unbroken.folder / "checkpoints/step-000007")


@pytest.mark.parametrize("divergence", [{"action": "stop", "patience": 2}, {"rollbacks": 2, "patience": 2}])
def test_a_run_that_cannot_be_helped_stops_and_names_steps_and_pictures(
    config: Make, cache: Path, tmp_path: Path, nan_at: Callable[..., None], divergence: dict[str, Any]
) -> None:
    nan_at({3, 4})
    # A factor of 1 helps nobody.
    settings = config(training__divergence={**divergence, "learning_rate_factor": 1.0})
    with pytest.raises(DivergedError, match=r"steps 3 to 4 were skipped .*, on \d\.png, \d\.png") as error:
        train_in(tmp_path / "mug", settings, cache=cache)
    assert error.value.exit_code == 7
    assert ("the run went back 2 times" in error.value.message) == ("rollbacks" in divergence)
    assert Run.open(tmp_path / "mug").state.status == "failed"
    assert not (tmp_path / "mug" / "mug.safetensors").exists()


def test_a_skipped_step_names_the_pictures_of_all_its_micro_batches(
    config: Make, cache: Path, tmp_path: Path, nan_at: Callable[..., None]
) -> None:
    nan_at({2}, accumulation=3)
    run = train_in(tmp_path / "mug", config(training__accumulation=3, training__steps=2), cache=cache)
    (told,) = warnings(run)
    assert sorted(told.rpartition(" on ")[2].split(", ")) == ["0.png", "1.png", "2.png"]


def test_one_picture_that_all_bad_steps_share_is_named_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from fluxtune.training.health import Health

    events: list[Event] = []
    drawn = [["a/1.png", "a/bad.png"], ["a/bad.png", "a/2.png"]]
    settings = TrainingConfig.model_validate({"divergence": {"patience": 2, "action": "stop"}})
    health = Health(settings, lambda step: drawn[step], lambda _: 0, {}, events.append)
    for step in range(2):
        health.note(step, math.nan, math.nan, True)
    assert health.is_lost
    with pytest.raises(DivergedError, match=r"all of them on bad\.png, with 1\.png, 2\.png"):
        health.go_back(1)
