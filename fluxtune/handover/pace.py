"""Steps and epochs, what the learning rate does meanwhile, and the name of the run."""

from __future__ import annotations

import re
from math import ceil

from fluxtune.config.settings import shown
from fluxtune.handover.given import Given
from fluxtune.handover.rules import Rule, Values, Wanted, named

SCHEDULE = ("training.schedule", "training.warmup")


def steps_of(given: Given, key: str, epochs: float, batch: int, accumulation: int) -> int | None:
    """Optimizer steps of so many epochs; None, which is said, where the pictures are not here to be counted."""
    if given.pictures is None:
        given.warn(key, f"{key} = {epochs:g}: the pictures are not here to be counted; set training.steps")
        return None
    each = ceil(ceil(given.pictures / max(1, batch)) / max(1, accumulation))
    steps = max(1, round(epochs * each))
    given.note(key, f"{key} = {epochs:g}: {steps} steps, {each} an epoch of {given.pictures} pictures")
    return steps


def epochs_of(wanted: Wanted) -> int:
    """The fewest epochs that have the steps of a run."""
    return ceil(wanted["training.steps"] / steps_an_epoch(wanted))


def steps_an_epoch(wanted: Wanted) -> int:
    """Optimizer steps of one epoch."""
    batches = ceil(wanted.pictures / wanted["training.batch_size"])
    return max(1, ceil(batches / wanted["training.accumulation"]))


def diffusers_schedule(name: str, warmup: str, usual: str, usual_warmup: int, steps: str, note: str = "") -> Rule:
    """The schedules of diffusers' ``get_scheduler``, whose plain constant one has no warm-up.

    Args:
        name, warmup, steps: their keys.
    """
    schedules = named(
        name,
        "training.schedule",
        usual,
        {"constant": "constant", "linear": "linear", "cosine": "cosine"},
        also={"constant_with_warmup": "constant"},
        near={
            "polynomial": ("linear", "its power and its end are not taken over"),
            "cosine_with_restarts": ("cosine", "there are no restarts here"),
            "cosine_with_min_lr": ("cosine", "it falls to zero here"),
        },
        otherwise="constant",
    )

    def write(wanted: Wanted) -> Values:
        schedule, over = wanted["training.schedule"], wanted["training.warmup"]
        return {name: "constant_with_warmup" if schedule == "constant" and over else schedule, warmup: over}

    def read(given: Given) -> Values:
        values = schedules.read(given)
        over = given.number(warmup, usual_warmup)
        if given.text(name, usual) == "constant":
            return values
        if 0 < over < 1:
            over = round(over * given.whole(steps, 0))
        return values | {"training.warmup": round(over)}

    return Rule((name, warmup), SCHEDULE, write, read, note)


def run_name(key: str) -> Rule:
    """The name of the LoRA, with other signs than ours made into dashes."""

    def read(given: Given) -> Values:
        name = given.text(key)
        if not name:
            return {}
        stem = re.split(r"[/\\]", name)[-1].removesuffix(".safetensors")
        fit = re.sub(r"[^A-Za-z0-9._ -]+", "-", stem).lstrip("._ -")[:100].rstrip()
        if fit != name:
            given.note(key, f"{key} = {shown(name)} becomes {shown(fit)}")
        return {"name": fit} if fit else {}

    return Rule(
        (key,), ("name",), lambda wanted: {key: wanted["name"] or "fluxtune"}, read, "An empty one is fluxtune."
    )


def adamw(
    key: str, names: dict[str, str], usual: str, arguments: str, also: dict[str, str], decay: str | None = None
) -> Rule:
    """The optimizer, with its weight decay among the arguments as ``weight_decay=0.01``, or at a key of its own."""
    optimizers = named(key, "training.optimizer", usual, names, also, otherwise="adamw")

    def write(wanted: Wanted) -> Values:
        return optimizers.write(wanted) | {arguments: f"weight_decay={wanted['training.weight_decay']}"}

    def read(given: Given) -> Values:
        pairs = given.pairs(arguments)
        usual_decay = given.number(decay, 0.01) if decay is not None else 0.01
        found = given.number_in(arguments, pairs.pop("weight_decay", usual_decay))
        for name, value in pairs.items():
            given.warn(arguments, f"{name}={value} of the optimizer has no counterpart here")
        return optimizers.read(given) | ({} if found is None else {"training.weight_decay": float(found)})

    keys = (key, arguments) if decay is None else (key, arguments, decay)
    return Rule(keys, ("training.optimizer", "training.weight_decay"), write, read)
