"""Small whole runs on the tiny FLUX: their configuration, and what they leave behind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from fluxtune.config.schema import Config
from fluxtune.errors import ExitCode
from fluxtune.events import Event, Step
from fluxtune.training.run import train

E = TypeVar("E")
STEPS = 6


@dataclass(frozen=True)
class Trained:
    """A run: its folder, the events that its caller saw, the cache that it used."""

    folder: Path
    events: list[Event]
    config: Config
    cache: Path

    @property
    def file(self) -> Path:
        return self.folder / f"{self.folder.name}.safetensors"

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.file)

    def seen(self, kind: type[E]) -> list[E]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    def record(self) -> list[dict[str, Any]]:
        """``events.jsonl``, parsed."""
        return [json.loads(line) for line in (self.folder / "events.jsonl").read_text().splitlines()]

    @property
    def losses(self) -> list[float]:
        return [step.loss for step in self.seen(Step)]


def small_pictures(folder: Path, sizes: Sequence[tuple[int, int]] = ((128, 128), (128, 128), (160, 96))) -> Path:
    """Captioned pictures of these sizes."""
    folder.mkdir(exist_ok=True)
    for index, size in enumerate(sizes):
        image = Image.new("RGB", size, (200, 40 * index % 256, 90))
        ImageDraw.Draw(image).ellipse((20, 20, 80, 70), fill=(20, 200, 60 * index % 256))
        image.save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a zorvex in place {index}", encoding="utf-8")
    return folder


def config_for(base: Path, pictures: Path, **changes: Any) -> Config:
    """A small run; ``changes`` are dotted settings with ``__`` for the dot, such as ``training__steps=2``."""
    values: dict[str, Any] = {
        "model": {"base": str(base)},
        "dataset": {
            "folders": [{"path": str(pictures)}],
            "resolution": [128],
            "trigger": "zorvex",
            "class_word": "critter",
            "caption_dropout": 0.3,
        },
        "lora": {"rank": 4},
        "training": {
            "steps": STEPS,
            "batch_size": 2,
            "learning_rate": 1e-3,
            "precision": "fp32",
            "optimizer": "adamw",
            "device": "cpu",
            "ema_decay": 0.5,
            "preservation": {"method": "output", "weight": 0.5},
        },
        "memory": {"base_precision": "fp32", "text_precision": "fp32", "recompute": "none"},
        "previews": {"every": 3, "steps": 2, "prompts": ["a red star"], "seeds": [7]},
        "checkpoints": {"every": 2, "keep": 2, "dtype": "fp32"},
    }
    for name, value in changes.items():
        *sections, key = name.split("__")
        section = values
        for part in sections:
            section = section.setdefault(part, {})
        section[key] = value
    return Config.model_validate(values)


def plain_config(base: Path, pictures: Path, **changes: Any) -> Config:
    """The same without previews, averages, preservation, dropout and checkpoints on the way."""
    without: dict[str, Any] = {
        "previews__every": 0,
        "checkpoints__every": 0,
        "training__ema_decay": 0.0,
        "training__preservation": {"method": "none"},
        "dataset__caption_dropout": 0.0,
    }
    return config_for(base, pictures, **{**without, **changes})


def train_in(folder: Path, config: Config, *, cache: Path, **options: Any) -> Trained:
    """Train with a cache folder of its own."""
    events: list[Event] = []
    stop = options.get("should_stop")

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(stop, stop_after):
            stop.sees(event)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLUXTUNE_CACHE", str(cache))
        train(config, output=folder, on_event=on_event, **options)
    return Trained(folder, events, config, cache)


class stop_after:
    """A ``should_stop`` that asks for a stop after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def sees(self, event: Event) -> None:
        self.left -= isinstance(event, Step)

    def __call__(self) -> ExitCode | None:
        return ExitCode.INTERRUPTED if self.left <= 0 else None
