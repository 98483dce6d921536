"""What single settings cannot know: settings that need or exclude each other."""

from __future__ import annotations

from collections.abc import Iterator

from fluxtune.config.schema import Config
from fluxtune.errors import FluxtuneError, UsageError


def contradictions(config: Config, origins: dict[str, str]) -> Iterator[FluxtuneError]:
    """Settings that are each in range and make no sense together, at the place of the one to change."""
    training, dataset = config.training, config.dataset
    preservation = training.preservation
    if preservation.method != "none" and not preservation.prompts and not dataset.class_word:
        yield UsageError(
            f'training.preservation.method is "{preservation.method}", but nothing says what to preserve: wanted '
            "dataset.class_word or training.preservation.prompts",
            where=origins["training.preservation.method"],
            hint='name what kind of thing the subject is: dataset.class_word = "dog"',
        )
    elif preservation.method == "output" and not preservation.prompts and not dataset.trigger:
        yield UsageError(
            'training.preservation.method is "output", which puts the class word where the trigger stands: wanted '
            "dataset.trigger or training.preservation.prompts",
            where=origins["training.preservation.method"],
            hint="name the trigger word: dataset.trigger",
        )
    if dataset.missing_captions == "trigger" and not dataset.trigger:
        yield UsageError(
            'dataset.missing_captions is "trigger", but dataset.trigger is unset: wanted a trigger word',
            where=origins["dataset.missing_captions"],
            hint="set dataset.trigger",
        )
    if training.warmup >= training.steps:
        yield UsageError(
            f"training.warmup is {training.warmup} steps, as long as the whole run: wanted fewer than the "
            f"{training.steps} of training.steps",
            where=origins["training.warmup"],
            hint="a tenth of training.steps is usual",
        )
