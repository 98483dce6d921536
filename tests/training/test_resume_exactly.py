"""A run that was killed and resumed leaves what the unbroken one does, for every optimizer and plan.

A kill is played by a copy of the run folder, taken while the run goes on: that is what a kill leaves on the disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from same_runs import left_behind
from tiny_runs import config_for, small_pictures, train_in

from fluxtune.config.schema import Config
from fluxtune.config.settings import settings
from fluxtune.dataset import survey
from fluxtune.events import Checkpoint, Event, Preview, Step
from fluxtune.memory.activations import ActivationOffload
from fluxtune.training import encode
from fluxtune.training.run import train

OPTIMIZERS = settings()["training.optimizer"].choices
STEPS = 5
USUAL: dict[str, Any] = {
    "training__steps": STEPS,
    "lora__rank": 64,  # the smallest whose states are held in 8 bits, where they are
    "previews__every": 2,
    "previews__seeds": [7, 8],
}
PLANS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "accumulation, several epochs": {"training__accumulation": 3, "lora__dropout": 0.2},
    "cosine after a warm-up, recomputed": {
        "training__schedule": "cosine",
        "training__warmup": 2,
        "memory__recompute": "all",
        "training__preservation": {"method": "none"},
    },
    "prior, blocks that keep more": {
        "training__preservation": {"method": "prior", "prompts": ["a red star"], "pictures": 1},
        "memory__recompute": "all",
        "memory__keep": {"products": [1, 0], "everything": [0, 1]},
    },
    "streamed, offloaded, ahead": {
        "memory__modulation": "ahead",
        "memory__streamed_blocks": 3,
        "memory__offload_activations": True,
        "memory__recompute": "all",
        "lora__dropout": 0.2,
    },
    "bf16": {"training__precision": "bf16", "memory__base_precision": "bf16", "training__ema_decay": 0.0},
    "int8": {"memory__base_precision": "int8", "memory__cache_quantized": True},
    "int8-weights": {"memory__base_precision": "int8-weights"},
    "fp8": {"memory__base_precision": "fp8"},
    "nf4": {"memory__base_precision": "nf4", "training__precision": "bf16", "memory__text_precision": "nf4"},
}
QUICK = ["accumulation, several epochs", "prior, blocks that keep more", "streamed, offloaded, ahead", "nf4"]


@dataclass
class Camera:
    """Copies a run folder when an event comes, as a kill just then would leave it."""

    run: Path
    copy: Path
    comes: Callable[[Event], bool]
    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if self.comes(event) and not self.copy.exists():
            # What is being written just now under a temporary name may have its own by the time it is copied.
            shutil.copytree(self.run, self.copy, ignore=shutil.ignore_patterns("*.partial"))
            (self.copy / "lock").unlink()


MOMENTS: dict[str, Callable[[Event], bool]] = {
    "between checkpoints": lambda event: isinstance(event, Step) and event.step == 3,
    "amid previews": lambda event: isinstance(event, Preview) and event.step == 2,
    "at a checkpoint": lambda event: isinstance(event, Checkpoint) and event.step == 4,
}


@pytest.fixture(scope="session")
def mixed_pictures(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Rows of folders: three pictures of two shapes, one with a mask, seen twice; and one of the class."""
    folder = tmp_path_factory.mktemp("mixed")
    subject = small_pictures(folder / "subject")
    mask = Image.new("L", (128, 128), 0)
    mask.paste(255, (0, 0, 64, 128))
    mask.save(subject / "0-masklabel.png")
    others = small_pictures(folder / "others", ((128, 128),))
    return [
        {"path": str(subject), "repeats": 2},
        {"path": str(others), "kind": "regularization", "weight": 0.5},
    ]


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared cache")


def killed(config: Config, folder: Path, cache: Path, moments: list[str]) -> tuple[Path, list[Path]]:
    """An unbroken run, and copies of it at these moments."""
    run = folder / "unbroken" / "mug"
    cameras = [Camera(run, folder / moment / "mug", MOMENTS[moment]) for moment in moments]

    def on_event(event: Event) -> None:
        for camera in cameras:
            camera(event)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLUXTUNE_CACHE", str(cache))
        train(config, output=run, on_event=on_event)
    return run, [camera.copy for camera in cameras]


def require_equal(config: Config, folder: Path, cache: Path, moments: list[str]) -> None:
    unbroken, copies = killed(config, folder, cache, moments)
    expected = left_behind(unbroken)
    assert expected["result"] is not None
    assert len(expected["progress"]) == STEPS + 4 * 2  # the previews of steps 0, 2, 4 and 5, with two seeds each
    for copy in copies:
        train_in(copy, config, cache=cache, resume=copy)
        assert left_behind(copy) == expected


@pytest.fixture(autouse=True)
def all_activations_are_offloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ActivationOffload, "smallest", 1)


@pytest.mark.parametrize(("number", "plan"), list(enumerate(QUICK)))
def test_a_run_that_was_killed_ends_as_the_unbroken_one_to_the_bit(
    tiny_flux: Path, mixed_pictures: list[dict[str, Any]], shared_cache: Path, tmp_path: Path, number: int, plan: str
) -> None:
    optimizer = OPTIMIZERS[number % len(OPTIMIZERS)]
    config = config_with(tiny_flux, mixed_pictures, optimizer, plan)
    require_equal(config, tmp_path, shared_cache, [list(MOMENTS)[number % len(MOMENTS)]])


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_with_every_optimizer_and_plan_a_run_killed_at_any_place_ends_as_the_unbroken_one(
    tiny_flux: Path, mixed_pictures: list[dict[str, Any]], shared_cache: Path, tmp_path: Path, optimizer: str, plan: str
) -> None:
    config = config_with(tiny_flux, mixed_pictures, optimizer, plan)
    require_equal(config, tmp_path, shared_cache, list(MOMENTS))


def config_with(base: Path, rows: list[dict[str, Any]], optimizer: str, plan: str) -> Config:
    changes = {**USUAL, "dataset__folders": rows, "training__optimizer": optimizer, **PLANS[plan]}
    return config_for(base, Path("unused"), **changes)


def test_the_number_of_threads_that_decode_changes_nothing(
    tiny_flux: Path, mixed_pictures: list[dict[str, Any]], tmp_path: Path
) -> None:
    config = config_with(tiny_flux, mixed_pictures, "adamw", "as it comes")
    unbroken, (copy,) = killed(config, tmp_path, tmp_path / "cache", ["between checkpoints"])
    with pytest.MonkeyPatch.context() as patch:
        for module in (survey, encode):
            patch.setattr(module, "DECODERS", 1)
        # With a cache of its own, so that all pictures are decoded again.
        train_in(copy, config, cache=tmp_path / "another cache", resume=copy)
    assert left_behind(copy) == left_behind(unbroken)
