"""Which settings of a run may change when it goes on: one table, and what it says of two configurations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from fluxtune.config.schema import Config
from fluxtune.config.settings import shown, values_of


class Change(Enum):
    """What a changed setting means to a run that goes on."""

    FREE = auto()
    """It may change: what it decides is written anew, or is asked for by whoever changes it."""
    TOLD = auto()
    """It may change, with a warning: from there on the numbers are not quite those of the unbroken run."""
    PLACE = auto()
    """It may name another place of this machine: what lies there is compared by its content. A hub's id may not
    change, for to compare it would be to download it."""
    DATA = auto()
    """It is a part of the data set, and changes as pictures do: once that is accepted."""
    FIXED = auto()
    """It may not change: the adapter, the optimizer's state or the order of the samples are made by it."""


ON_RESUME: dict[str, Change] = {
    "name": Change.FREE,
    "model.base": Change.PLACE,
    "model.revision": Change.FREE,  # which files it names is compared
    "model.offline": Change.FREE,
    "model.transformer": Change.PLACE,
    "model.vae": Change.PLACE,
    "model.text_encoder": Change.PLACE,
    "model.text_encoder_2": Change.PLACE,
    "dataset": Change.DATA,
    # The folders may have moved. What their rows decide (captions, masks, repeats, weights) is compared by picture.
    "dataset.folders": Change.FREE,
    "lora": Change.FIXED,
    "tracking": Change.FREE,
    "training.steps": Change.FREE,
    "training.batch_size": Change.FIXED,
    "training.accumulation": Change.FIXED,
    "training.learning_rate": Change.FREE,
    "training.schedule": Change.FREE,
    "training.warmup": Change.FREE,
    "training.optimizer": Change.FIXED,
    "training.weight_decay": Change.FREE,
    "training.max_grad_norm": Change.FREE,
    "training.timestep_sampling": Change.FIXED,
    "training.logit_mean": Change.FIXED,
    "training.logit_std": Change.FIXED,
    "training.shift": Change.FIXED,
    "training.guidance": Change.FIXED,
    "training.ema_decay": Change.FIXED,
    "training.precision": Change.FIXED,
    "training.device": Change.TOLD,
    "training.divergence": Change.FREE,
    "training.seed": Change.FIXED,
    "training.preservation": Change.FIXED,
    # [memory] is about the card, and a run may go on with another one: the adapter and the optimizer's state are the
    # same for every plan. Without these a run that was begun on a large card could not be finished on a small one.
    "memory.budget": Change.FREE,
    "memory.base_precision": Change.TOLD,
    "memory.text_precision": Change.TOLD,
    "memory.modulation": Change.TOLD,  # computed ahead it is not quantised
    "memory.recompute": Change.FREE,
    "memory.keep": Change.FREE,
    "memory.streamed_blocks": Change.FREE,
    "memory.offload_activations": Change.FREE,
    "memory.vae_tiling": Change.TOLD,
    "memory.cache_quantized": Change.FREE,
    "checkpoints": Change.FREE,
    "metadata": Change.FREE,
    "previews": Change.FREE,
    "sampling": Change.FREE,
    "captioning": Change.FREE,  # of pictures that come later; of the others the run has recorded the captions
}
"""Setting or section -> what changing it means; of several rows that fit a setting, the longest counts."""


@dataclass(frozen=True)
class Changed:
    """A setting that is not what the run has."""

    key: str
    was: object
    is_now: object
    change: Change

    def __str__(self) -> str:
        return f"{self.key} was {shown(self.was)}, is now {shown(self.is_now)}"


def row_of(key: str) -> str | None:
    """The row of ``ON_RESUME`` that counts for a setting."""
    parts = key.split(".")
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in ON_RESUME), None)


def changed_settings(before: Config, after: Config) -> Iterator[Changed]:
    """The settings that differ, in the order of the schema."""
    was, is_now = values_of(before), values_of(after)
    for key in was:
        if was[key] != is_now[key]:
            row = row_of(key)
            assert row is not None, f"{key} has no row in ON_RESUME"
            change = ON_RESUME[row]
            if change is Change.PLACE:
                change = Change.FREE if _is_here(is_now[key]) else Change.FIXED
            yield Changed(key, was[key], is_now[key], change)


def _is_here(place: object) -> bool:
    return isinstance(place, str) and os.path.exists(os.path.expanduser(place))
