"""Every preset for a card fits it: by adding up what blocks keep, and slowly, by planning and simulating anew."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fluxtune.config.memory import MemoryConfig
from fluxtune.flux.base import Base
from fluxtune.flux.known import known_base
from fluxtune.recipes.memory.figures import card_presets, work_of_preset
from fluxtune.training.planning import foretold_to_fit, planned
from fluxtune.training.simulation import Work

GIB = 2**30
DEV, SCHNELL = "black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-schnell"
FIGURES = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "memory.json").read_text(encoding="utf-8"))
PRESETS = FIGURES["presets"]
AT_MOST = {
    "6gb": 5.5,
    "8gb": 7.2,
    "12gb": 10.9,
    "16gb": 14.8,
    "24gb": 21.8,
    "24gb-bf16": 21.8,
    "48gb": 43.0,
    "80gb": 76.0,
}
"""GiB, over all phases."""


@pytest.fixture(scope="module", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Presets share what blocks of the same precision cost."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(autouse=True)
def in_shared_cache(own_cache: None, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FLUXTUNE_CACHE", str(shared_cache))
    yield


def base(name: str) -> Base:
    known = known_base(name)
    assert known is not None
    return known


def as_published(name: str, of: Base) -> Work:
    """The preset with the plan that the tables show, nothing left open."""
    work = work_of_preset(name, of)
    memory = MemoryConfig.model_validate(PRESETS[name]["memory"])
    return replace(work, config=work.config.model_copy(update={"memory": memory}))


def free_of_products(memory: dict[str, Any]) -> int:
    """Blocks that recompute no matrix product and no attention."""
    return sum(memory["keep"]["products"]) + sum(memory["keep"]["everything"])


def test_the_figures_are_of_every_card_preset_as_it_is_now() -> None:
    assert list(PRESETS) == card_presets()
    assert set(AT_MOST) == set(PRESETS)
    for name, figures in PRESETS.items():
        work = work_of_preset(name, base(DEV))
        assert (figures["pixels"], figures["batch"]) == (work.size[0], work.config.training.batch_size)
        assert figures["capacity"] == work.capacity
        for setting, value in work.config.memory.model_dump(mode="json").items():
            if value != "auto" and setting not in ("keep", "vae_tiling", "offload_activations", "streamed_blocks"):
                assert figures["memory"][setting] == value, (name, setting)


@pytest.mark.parametrize("name", AT_MOST)
def test_every_published_plan_stays_within_its_limit(name: str) -> None:
    assert PRESETS[name]["fits"]
    assert PRESETS[name]["peak"] <= AT_MOST[name] * GIB
    assert PRESETS[name]["reserved"] <= PRESETS[name]["capacity"]
    assert PRESETS[name]["memory"]["streamed_blocks"] == 0


def test_presets_recompute_no_more_than_they_may() -> None:
    assert free_of_products(PRESETS["16gb"]["memory"]) >= 15
    assert PRESETS["24gb"]["recomputed_share"] < PRESETS["16gb"]["recomputed_share"]
    for name in ("48gb", "80gb"):
        assert PRESETS[name]["memory"]["recompute"] == "none"


@pytest.mark.parametrize("name", AT_MOST)
def test_every_preset_fits_flux_dev_by_adding_up_what_blocks_keep(name: str) -> None:
    work = as_published(name, base(DEV))
    assert work.capacity is not None
    # Adding up may foretell half a percent more than a simulation finds; the figures hold to the limit themselves.
    assert foretold_to_fit(replace(work, capacity=min(work.capacity, int(1.005 * AT_MOST[name] * GIB))))
    assert not foretold_to_fit(replace(work, capacity=int(0.97 * PRESETS[name]["peak"])))


@pytest.mark.parametrize("name", ["8gb", "12gb", "24gb-bf16"])
def test_a_preset_of_each_precision_fits_flux_schnell(name: str) -> None:
    assert foretold_to_fit(as_published(name, base(SCHNELL)))


@pytest.mark.slow
@pytest.mark.parametrize("of", [DEV, SCHNELL])
@pytest.mark.parametrize("name", AT_MOST)
def test_every_preset_fits_when_planned_and_simulated_as_a_whole(name: str, of: str) -> None:
    plan = planned(work_of_preset(name, base(of)))
    assert plan.fits
    assert plan.forecast.peak.bytes <= AT_MOST[name] * GIB
    if of == DEV:
        assert plan.memory.model_dump(mode="json") == PRESETS[name]["memory"]
        assert plan.forecast.peak.bytes == pytest.approx(PRESETS[name]["peak"], rel=0.001)
