"""What a run's LoRA says of how it was trained."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fluxtune import __version__
from fluxtune.config.schema import Config
from fluxtune.dataset.pictures import Picture
from fluxtune.flux.base import Base
from fluxtune.hub.licenses import LICENSES
from fluxtune.lora.metadata import LoraFacts
from fluxtune.training.examples import Example

_MOST_PHRASES = 500


def lora_facts(
    name: str,
    step: int,
    epochs: int,
    started: float,
    config: Config,
    base: Base,
    pictures: Sequence[Picture],
    examples: Sequence[Example],
) -> LoraFacts:
    """The facts after ``step`` steps.

    Args:
        started: when the run began, in seconds since 1970.
    """
    is_local = Path(os.path.expanduser(base.name)).exists()
    said = config.metadata
    return LoraFacts(
        name=name,
        base=Path(base.name).name if is_local else base.name,
        architecture=base.family.architecture(base.embeds_guidance),
        rank=config.lora.rank,
        steps=step,
        epochs=epochs,
        learning_rate=config.training.learning_rate,
        optimizer=config.training.optimizer,
        seed=config.training.seed,
        resolution=max(config.dataset.resolution),
        pictures=len(pictures),
        started=started,
        finished=time.time(),
        trigger=config.dataset.trigger,
        version=__version__,
        author=said.author,
        description=said.description,
        license=said.license or str(LICENSES.get(base.name, "")),
        tags=tuple(said.tags),
        buckets=_buckets(examples),
        phrases=_phrases(pictures) if said.caption_words else None,
    )


def _buckets(examples: Sequence[Example]) -> Counter[tuple[int, int]]:
    """(width, height) -> how often it is seen in an epoch."""
    counts: Counter[tuple[int, int]] = Counter()
    for example in examples:
        counts[example.width, example.height] += example.picture.repeats
    return counts


def _phrases(pictures: Sequence[Picture]) -> dict[str, int]:
    """The parts of the captions between commas, and how often each occurs; the most frequent of them."""
    counts = Counter(phrase.strip() for picture in pictures for phrase in picture.caption.split(",") if phrase.strip())
    return dict(counts.most_common(_MOST_PHRASES))
