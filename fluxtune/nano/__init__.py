"""The embedded model: a small pretrained FLUX of painted pictures, and a demo data set that it has never seen."""

from __future__ import annotations

from pathlib import Path

EMBEDDED = "nano"
"""The embedded model's name as a base model."""

TRIGGER = "zorvex"
"""The word that means the demo's subject; no training caption has it."""


def model_folder() -> Path:
    """The folder of the embedded model, as `FluxPipeline.from_pretrained` takes it."""
    return Path(__file__).parent / "model"


def demo_folder() -> Path:
    """The folder of the demo's pictures, which have no captions, and of `dataset.toml`: the settings they go with."""
    return Path(__file__).parent / "demo"


def captioner_folder() -> Path:
    """The folder of the embedded captioner, as `BlipForConditionalGeneration.from_pretrained` takes it."""
    return Path(__file__).parent / "captioner"
