"""Whether pictures of FLUX.1-dev's shapes fit cards, and what is decided for each of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fluxtune.config import presets
from fluxtune.config.layers import resolve
from fluxtune.config.memory import MemoryConfig
from fluxtune.environment.device import BESIDE_TORCH
from fluxtune.errors import OutOfMemoryError
from fluxtune.events import Plan, Warning, ignore
from fluxtune.flux.base import Base
from fluxtune.flux.known import known_base
from fluxtune.sampling.fitting import fitted
from fluxtune.sampling.simulation import Painting, foresee_pictures, foresee_texts

GIB = 2**30
TIERS = ["6gb", "8gb", "12gb", "16gb", "24gb", "24gb-bf16", "48gb", "80gb"]


@pytest.fixture(scope="module")
def dev() -> Base:
    known = known_base("black-forest-labs/FLUX.1-dev")
    assert known is not None
    return known


@pytest.fixture(scope="module")
def shallow(dev: Base, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """FLUX.1-dev's widths with two blocks and little T5, which are simulated at once."""
    folder = tmp_path_factory.mktemp("shallow")
    for part in ("transformer", "vae", *dev.text_encoders):
        (folder / part).mkdir()
        config = json.loads((dev.folder / part / "config.json").read_text())
        if part == "transformer":
            config |= {"num_layers": 1, "num_single_layers": 1}
        if part == "text_encoder_2":
            config["num_layers"] = 1
        (folder / part / "config.json").write_text(json.dumps(config))
    return replace(dev, folder=folder)


def painting(base: Base, **changes: Any) -> Painting:
    usual: dict[str, Any] = {
        "base": base,
        "memory": MemoryConfig(),
        "dtype": torch.bfloat16,
        "size": (1024, 1024),
        "batch": 1,
        "led_away": False,
        "started": False,
        "lora_bytes": 0,
        "as_cuda": True,
        "capacity": None,
    }
    return Painting(**{**usual, **changes})


def peaks(work: Painting) -> dict[str, int]:
    return {each.phase: each.bytes for each in foresee_pictures(work).phases}


def test_a_larger_picture_a_batch_and_a_lora_take_more_and_tiles_less(shallow: Base) -> None:
    usual = painting(shallow)
    least = peaks(usual)
    assert peaks(replace(usual, size=(1024, 1536)))["decode"] > least["decode"]
    assert peaks(replace(usual, batch=2))["denoise"] > least["denoise"]
    assert peaks(replace(usual, lora_bytes=GIB))["denoise"] > least["denoise"] + GIB
    assert peaks(usual.with_memory(vae_tiling=True))["decode"] < least["decode"]
    assert list(peaks(replace(usual, started=True))) == ["load", "encode the start picture", "denoise", "decode"]


def test_without_a_limit_everything_is_most_precise(shallow: Base) -> None:
    memory = MemoryConfig(base_precision="auto", text_precision="auto", modulation="auto")
    decided = fitted(painting(shallow, memory=memory), ignore)
    assert (decided.base_precision, decided.text_precision, decided.modulation) == ("bf16", "bf16", "card")


def test_the_most_precise_base_that_fits_is_taken_and_the_rest_left_as_it_is_set(shallow: Base) -> None:
    memory = MemoryConfig(base_precision="auto", text_precision="nf4", modulation="card")
    usual = painting(shallow, memory=memory)
    peaks = {
        precision: foresee_pictures(usual.with_memory(base_precision=precision)).peak.bytes
        for precision in ("bf16", "int8", "nf4")
    }
    slack = 20 * 2**20
    for precision, too_much in (("int8", "bf16"), ("nf4", "int8")):
        events: list[Any] = []
        decided = fitted(replace(usual, capacity=peaks[too_much] - slack), events.append)
        assert decided == memory.model_copy(update={"base_precision": precision})
        (plan,) = [event for event in events if isinstance(event, Plan)]
        assert plan.fits and peaks[precision] <= plan.reserved <= peaks[too_much] - slack


def test_only_where_the_plan_is_left_open_the_vae_is_tiled_and_blocks_are_streamed(shallow: Base) -> None:
    closed = painting(shallow, memory=MemoryConfig(base_precision="nf4", text_precision="nf4", modulation="ahead"))
    tiled = foresee_pictures(closed.with_memory(vae_tiling=True)).reserved
    with pytest.raises(OutOfMemoryError, match="GiB of graphics memory \\(decode\\)") as error:
        fitted(replace(closed, capacity=tiled), ignore)
    assert error.value.exit_code == 4
    assert "--set memory.vae_tiling=true" in str(error.value.hint)
    opened = replace(closed, capacity=max(tiled, foresee_texts(closed).reserved)).with_memory(recompute="auto")
    assert fitted(opened, ignore).vae_tiling


def test_for_a_picture_that_is_made_again_only_what_leaves_its_pixels_as_they_are_is_planned(shallow: Base) -> None:
    memory = MemoryConfig(base_precision="bf16", text_precision="nf4", modulation="ahead", recompute="auto")
    usual = painting(shallow, memory=memory)
    capacity = foresee_pictures(usual).peak.bytes - 20 * 2**20
    assert fitted(replace(usual, capacity=capacity), ignore).vae_tiling
    with pytest.raises(OutOfMemoryError) as error:
        fitted(replace(usual, capacity=capacity, to_the_bit=True), ignore)
    assert "--set memory.vae_tiling=true" in str(error.value.hint)


def test_what_was_foretold_once_is_kept(shallow: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    work = painting(shallow, memory=MemoryConfig(text_precision="nf4"), capacity=24 * GIB, batch=3)
    first: list[Any] = []
    again: list[Any] = []
    fitted(work, first.append)
    for name in ("foresee_texts", "foresee_pictures"):
        monkeypatch.delattr(f"fluxtune.sampling.forecasts.{name}")
    fitted(work, again.append)
    assert again == first and any(isinstance(event, Plan) for event in first)


def test_what_does_not_fit_is_only_warned_of_where_that_is_accepted(shallow: Base) -> None:
    events: list[Any] = []
    memory = MemoryConfig(text_precision="nf4")
    decided = fitted(painting(shallow, memory=memory, capacity=GIB), events.append, tries_anyway=True)
    assert decided == memory
    assert [event.where for event in events if isinstance(event, Warning)] == ["memory"]


@pytest.mark.slow
@pytest.mark.parametrize("tier", TIERS)
def test_every_preset_that_trains_paints_within_its_card(tier: str, dev: Base, tmp_path: Path) -> None:
    assert tier in {preset.name for preset in presets.listing()}
    config = resolve(preset=tier, config_file=None, flags={}, sets=[], working_folder=tmp_path, data_sets=False).config
    side = config.dataset.resolution[0]
    assert config.memory.budget is not None
    work = painting(
        dev,
        memory=config.memory,
        size=(side, side),
        lora_bytes=200 * 2**20,
        capacity=int(config.memory.budget * GIB) - BESIDE_TORCH,
    )
    events: list[Any] = []
    decided = fitted(work, events.append)
    (plan,) = [event for event in events if isinstance(event, Plan)]
    assert plan.fits and plan.reserved <= work.capacity  # type: ignore[operator]
    assert "auto" not in (decided.base_precision, decided.text_precision, decided.modulation)
