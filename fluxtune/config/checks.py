"""What single settings cannot know: settings that need or exclude each other."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from fluxtune.config.schema import Config
from fluxtune.errors import FluxtuneError, UsageError

_WINDOWS_DEVICES = {
    "CON",
    "PRN",
    "AUX",
    "NUL",
    *(f"{port}{number}" for port in ("COM", "LPT") for number in range(1, 10)),
}


def contradictions(
    config: Config, origins: dict[str, str], ranks: dict[str, int] | None = None
) -> Iterator[FluxtuneError]:
    """Settings that are each in range and make no sense together, each told where it came about: in the higher layer.

    Args:
        origins: dotted key -> where its value comes from; a key without one is named itself.
        ranks: dotted key -> how high the layer is that its value comes from; a key without one is a default.
    """
    ranks = ranks or {}
    if config.name.partition(".")[0].strip().upper() in _WINDOWS_DEVICES:
        yield UsageError(
            f"name is {config.name!r}, which is a device on Windows and can be no file there",
            where=_place("name", origins),
            hint="choose another name",
        )
    yield from _preservation(config, origins, ranks)
    yield from _trackers(config, origins)
    training, dataset = config.training, config.dataset
    if dataset.missing_captions == "trigger" and not dataset.trigger:
        yield UsageError(
            'dataset.missing_captions is "trigger", but dataset.trigger is unset: wanted a trigger word',
            where=_place("dataset.missing_captions", origins),
            hint="set dataset.trigger",
        )
    if training.warmup >= training.steps:
        culprit = _highest(("training.warmup", "training.steps"), ranks)
        yield UsageError(
            f"training.warmup is {training.warmup} steps, as long as the whole run: wanted fewer than the "
            f"{training.steps} of training.steps",
            where=_place(culprit, origins),
            hint="a tenth of training.steps is usual",
        )
    if training.precision == "fp32" and config.memory.base_precision == "bf16":
        culprit = _highest(("training.precision", "memory.base_precision"), ranks)
        other = 'memory.base_precision = "fp32"' if culprit == "training.precision" else 'training.precision = "bf16"'
        yield UsageError(
            'training.precision is "fp32", but memory.base_precision is "bf16", which cannot be computed with in it',
            where=_place(culprit, origins),
            hint=f"set {other} too",
        )
    keep = config.memory.keep
    kept = next((name for name in ("attention", "products", "everything") if any(getattr(keep, name))), None)
    if config.memory.recompute == "none" and kept is not None:
        culprit = _highest(("memory.recompute", f"memory.keep.{kept}"), ranks)
        yield UsageError(
            f'memory.recompute is "none", which keeps everything, but memory.keep.{kept} is set',
            where=_place(culprit, origins),
            hint='set memory.recompute = "all", or leave memory.keep out',
        )
    if config.memory.offload_activations and config.memory.recompute == "none":
        culprit = _highest(("memory.recompute", "memory.offload_activations"), ranks)
        yield UsageError(
            'memory.offload_activations takes the inputs of recomputed blocks, but memory.recompute is "none"',
            where=_place(culprit, origins),
            hint='set memory.recompute = "all", or leave memory.offload_activations out',
        )


def _trackers(config: Config, origins: dict[str, str]) -> Iterator[FluxtuneError]:
    missing = [name for name in config.tracking.trackers if find_spec(name) is None]
    if missing:
        yield UsageError(
            f"tracking.trackers: not installed: {', '.join(missing)}",
            where=_place("tracking.trackers", origins),
            hint=f"pip install {' '.join(missing)}",
        )


def _preservation(config: Config, origins: dict[str, str], ranks: dict[str, int]) -> Iterator[FluxtuneError]:
    guard, dataset = config.training.preservation, config.dataset
    if guard.method == "none" or guard.prompts:
        return
    where = _place(_highest(("training.preservation.method", "training.preservation.prompts"), ranks), origins)
    if not dataset.class_word:
        yield UsageError(
            f'training.preservation.method is "{guard.method}", but nothing says what to preserve: wanted '
            "dataset.class_word or training.preservation.prompts",
            where=where,
            hint='name what kind of thing the subject is: dataset.class_word = "dog"',
        )
    elif guard.method == "output" and not dataset.trigger:
        yield UsageError(
            'training.preservation.method is "output", which puts the class word where the trigger stands: wanted '
            "dataset.trigger or training.preservation.prompts",
            where=where,
            hint="name the trigger word: dataset.trigger",
        )


def _highest(keys: tuple[str, ...], ranks: dict[str, int]) -> str:
    """The key whose value comes from the highest layer; of one layer, the first."""
    return max(keys, key=lambda key: ranks.get(key, 0))


def _place(key: str, origins: dict[str, str]) -> str:
    return origins.get(key, key)
