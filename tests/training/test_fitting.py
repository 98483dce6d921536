"""A run is planned before weights load: what is open is decided, what cannot fit is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_runs import config_for, plain_config, train_in

from fluxtune.config.model import ModelConfig
from fluxtune.config.schema import Config
from fluxtune.errors import OutOfMemoryError, Refusal
from fluxtune.events import Plan, Result, Warning
from fluxtune.flux.base import Base, open_base
from fluxtune.training.fitting import fitted, nearest_changes, work_of
from fluxtune.training.planning import foretold_to_fit
from fluxtune.training.run import train

OPEN = {
    "base_precision": "auto",
    "text_precision": "auto",
    "modulation": "auto",
    "recompute": "auto",
}
ENOUGH, TOO_LITTLE = 0.7, 0.603
"""GiB: a hundred MiB beside what CUDA takes for itself, and three."""


@pytest.fixture
def base(tiny_flux: Path) -> Base:
    return open_base(ModelConfig(base=str(tiny_flux)))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache, so that what several tests ask for is simulated once."""
    return tmp_path_factory.mktemp("simulated")


@pytest.fixture(autouse=True)
def cache(own_cache: None, simulated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLUXTUNE_CACHE", str(simulated))
    return simulated


def open_config(tiny_flux: Path, pictures: Path, **memory: object) -> Config:
    return plain_config(tiny_flux, pictures, memory={**OPEN, **memory}, training__steps=2)


def test_without_a_card_or_a_budget_nothing_is_recomputed_and_nothing_simulated(
    base: Base, tiny_flux: Path, few_pictures: Path
) -> None:
    config, plan = fitted(open_config(tiny_flux, few_pictures), base, "cpu", [(128, 128)], (), lambda _: None)
    memory = config.memory
    assert plan is None
    assert (memory.base_precision, memory.text_precision) == ("fp32", "fp32")
    assert (memory.modulation, memory.recompute) == ("card", "none")


def test_a_run_records_the_plan_that_it_follows(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path, cache: Path
) -> None:
    run = train_in(
        tmp_path / "mug",
        open_config(tiny_flux, few_pictures, budget=ENOUGH),
        cache=cache,
        origins={"memory.recompute": "x"},
    )
    (plan,) = run.seen(Plan)
    assert plan.fits
    assert plan.memory["recompute"] == "none"
    assert [record["event"] for record in run.record()].count("plan") == 1
    memory = (run.folder / "config.toml").read_text().partition("[memory]")[2].partition("\n[memory.")[0]
    assert "budget" in memory
    assert '"auto"' not in memory
    assert '"memory.recompute": "the plan for this card"' in (run.folder / "origins.json").read_text()
    assert plan.summary in (run.folder / "run.json").read_text()


def test_a_resumed_run_keeps_its_plan(tiny_flux: Path, few_pictures: Path, tmp_path: Path, cache: Path) -> None:
    from fluxtune.cli.train import _resolve_again

    folder = tmp_path / "mug"
    train_in(folder, open_config(tiny_flux, few_pictures, budget=ENOUGH), cache=cache)
    pinned = _resolve_again(folder, None, None, {}, ["training.steps=3"])
    assert pinned.config.memory.recompute == "none"
    assert pinned.origins["memory.recompute"] == "the plan for this card"
    again = train_in(folder, pinned.config, cache=cache, resume=folder, origins=pinned.origins)
    assert again.seen(Result)[-1].data["steps"] == 3


def test_what_cannot_fit_is_refused_before_there_is_a_run_folder(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path
) -> None:
    config = plain_config(tiny_flux, few_pictures, memory__budget=TOO_LITTLE)
    with pytest.raises(OutOfMemoryError, match="GiB are there") as refused:
        train(config, output=tmp_path / "mug")
    assert not (tmp_path / "mug").exists()
    assert refused.value.where == "memory"


def test_what_cannot_fit_is_refused_before_anything_is_captioned(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(few_pictures, bare, ignore=shutil.ignore_patterns("*.txt"))
    config = plain_config(
        tiny_flux, bare, memory__budget=TOO_LITTLE, dataset__missing_captions="caption", previews__every=0
    )

    def never(*_: object) -> dict[str, str]:
        raise AssertionError("a captioner was asked")

    with pytest.raises(OutOfMemoryError):
        train(config, output=tmp_path / "mug", caption_bare=never)


def test_what_does_not_fit_is_tried_where_that_is_accepted(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path, cache: Path
) -> None:
    config = plain_config(tiny_flux, few_pictures, memory__budget=TOO_LITTLE, training__steps=1)
    run = train_in(tmp_path / "mug", config, cache=cache, accept={Refusal.MEMORY})
    assert any("GiB are there" in warning.message for warning in run.seen(Warning))
    assert '"memory"' in (run.folder / "run.json").read_text()
    assert run.seen(Result)


def test_each_change_that_is_named_makes_the_run_fit() -> None:
    """Of FLUX.1-dev with everything on the card that is half as large as it would need."""
    from fluxtune.config.layers import resolve
    from fluxtune.flux.known import known_base

    dev = known_base("black-forest-labs/FLUX.1-dev")
    assert dev is not None
    sets = ["memory.budget=13", "memory.base_precision=int8", "memory.text_precision=int8", "previews.every=0"]
    config = resolve(preset=None, config_file=None, flags={}, sets=sets, working_folder=Path.cwd()).config
    changes = nearest_changes(work_of(config, dev, "cpu", [(1024, 1024)]))
    assert len(changes) == 3
    assert not foretold_to_fit(work_of(config, dev, "cpu", [(1024, 1024)]))
    for change in changes:
        assert change.argument.startswith("--set ")
        setting = change.argument.removeprefix("--set ")
        changed = resolve(
            preset=None, config_file=None, flags={}, sets=[*sets, setting], working_folder=Path.cwd()
        ).config
        assert foretold_to_fit(work_of(changed, dev, "cpu", [(1024, 1024)]))


def test_the_largest_of_the_sizes_is_planned_for(base: Base, tiny_flux: Path, few_pictures: Path) -> None:
    config = config_for(tiny_flux, few_pictures)
    work = work_of(config, base, "cpu", [(128, 128), (160, 144), (64, 64)])
    assert (work.size, work.preview, work.capacity) == ((160, 144), (128, 128), None)
