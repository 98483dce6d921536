"""The single pictures that a request comes to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from fluxtune.lora.use import LoraUse

MOST = 10_000
"""Pictures of one request; more are a slip in an axis."""


@dataclass(frozen=True)
class Place:
    """Where a picture stood in the batch that it was made in: its last bits can depend on it."""

    size: int = 1
    index: int = 0


@dataclass(frozen=True)
class Wanted:
    """One picture that is wanted: all that decides it, beside the base model and how that is held.

    Attributes:
        template: the prompt as it was written, before anything was drawn from it.
        steps: denoising steps; None takes what the base model wants.
        start: picture to begin with, of which ``strength`` is painted over.
        place: in a batch; None wherever it fits.
        number: of its prompt, which its file's name begins with.
        name: of its prompt, if it has one.
        marks: what tells it apart from others of its prompt and seed, for its file's name.
    """

    prompt: str
    seed: int
    width: int
    height: int
    steps: int | None
    guidance: float
    negative_prompt: str | None = None
    true_guidance: float = 2.0
    start: Path | None = None
    strength: float = 0.6
    loras: tuple[LoraUse, ...] = ()
    place: Place | None = None
    template: str | None = None
    number: int = 0
    name: str | None = None
    marks: tuple[str, ...] = ()

    def scaled(self, factor: float) -> Wanted:
        """The same with all LoRAs acting so many times as strongly."""
        return replace(self, loras=tuple(replace(use, scale=use.scale * factor) for use in self.loras))
