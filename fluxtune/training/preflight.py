"""Everything that can be known before weights load: base model, device, pictures, captions, prompts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxtune.config.checks import contradictions
from fluxtune.config.model import ModelConfig
from fluxtune.config.schema import Config
from fluxtune.dataset.buckets import plan as plan_buckets
from fluxtune.dataset.folder import Item
from fluxtune.dataset.pictures import CaptionBare, Picture, check_folders, pictures_of
from fluxtune.dataset.survey import Look
from fluxtune.environment.device import pick_device, versions, warn_of_the_processor, warn_without_bf16
from fluxtune.errors import ConfigError, FluxtuneError, Refusal, UsageError
from fluxtune.events import Phase, Sink, Warning
from fluxtune.flux.base import Base, open_base
from fluxtune.flux.empty import empty_transformer, transformer_config
from fluxtune.lora.adapter import LoraLayer, require_fit
from fluxtune.lora.reading import read_start
from fluxtune.lora.targets import target_layers
from fluxtune.nano import EMBEDDED
from fluxtune.training.fitting import fitted, summary
from fluxtune.training.modulated import settled_memory
from fluxtune.training.planning import Planned
from fluxtune.training.prior import prior_prompts
from fluxtune.training.samples import EMPTY_CAPTION


@dataclass(frozen=True)
class Preflight:
    """What was found out, and what was ``accepted``. ``prompts`` are all texts needed beside the captions; ``facts``
    are for the record, and ``base_record.py`` has those of the base model.

    ``config`` is the configuration with nothing left open in ``[memory]``; ``plan`` says how that came, where it did.
    """

    config: Config
    plan: Planned | None
    base: Base
    device: str
    pictures: list[Picture]
    preview_prompts: list[str]
    prompts: list[str]
    facts: dict[str, Any]
    accepted: frozenset[Refusal]


def preflight(
    config: Config,
    on_event: Sink,
    goes_on: bool = False,
    accept: Collection[Refusal] = (),
    caption_bare: CaptionBare | None = None,
    find_base: Callable[[ModelConfig, Sink], Base] = open_base,
    plans_always: bool = False,
    compare: Callable[[Sequence[tuple[Item, Look]]], None] = lambda usable: None,
    free: int | None = None,
) -> Preflight:
    """Check what the configuration names.

    Args:
        goes_on: from a checkpoint, which stands in for ``lora.init_from``.
        accept: what is not to be refused.
        caption_bare: captions pictures that have no caption.
        find_base: finds the base model.
        plans_always: foretell memory where there is nothing to fit into, too.
        compare: is shown the pictures, before anything is loaded, planned or captioned.
        free: bytes that are free on the fullest of several cards.

    Raises:
        ConfigError: settings that do not go together, or a pattern of ``lora.targets`` that names no layer.
        UsageError: there is no file ``lora.init_from``, or it does not fit ``lora.targets`` and ``lora.rank``; or the
            modulation cannot be computed ahead.
        DataError: pictures or captions cannot be used.
        BaseModelError: the base model, or the captioner, cannot be had or used.
        OutOfMemoryError: the captioner does not fit, or the run does not.
    """
    _check_together(config)
    device = _device(config, on_event)
    on_event(Phase("preflight", "checking the pictures and the base model"))
    start = None if goes_on or not config.lora.init_from else Path(config.lora.init_from)
    layers = read_start(start, on_event=on_event) if start else {}
    # Before the base model, whose download can take an hour.
    usable = check_folders(config.dataset, on_event, Refusal.DATA in accept, has_captioner=caption_bare is not None)
    compare(usable)
    base = find_base(config.model, on_event)
    _check_base(config, base, layers, start, on_event)
    buckets = plan_buckets([look.size for _, look in usable], config.dataset, base.family.side_multiple)
    config = _pinned(config, base)
    config, plan = fitted(config, base, device, buckets.buckets, accept, on_event, plans_always, free)
    # Last, for captions can take an hour, too.
    pictures = pictures_of(usable, config.dataset, on_event, caption_bare)
    preview_prompts = (config.previews.prompts or [_shown_caption(pictures)]) if config.previews.every else []
    preservation = config.training.preservation
    guarded = prior_prompts(config) if preservation.method == "prior" else preservation.prompts
    return Preflight(
        config=config,
        plan=plan,
        base=base,
        device=device,
        pictures=pictures,
        preview_prompts=preview_prompts,
        prompts=[EMPTY_CAPTION, *preview_prompts, *guarded],
        facts={
            "versions": versions(),
            "device": device,
            "pictures": len(pictures),
            "plan": summary(plan) if plan else None,
        },
        accepted=frozenset(accept),
    )


def _pinned(config: Config, base: Base) -> Config:
    """With the hub's commit that was found as the revision, so that the run goes on with the same files."""
    if base.commit is None:
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"revision": base.commit})})


def _device(config: Config, on_event: Sink) -> str:
    """Where to train; says what is slow there."""
    device = pick_device(config.training.device)
    if config.model.base != EMBEDDED:
        warn_of_the_processor(device, config.training.device, on_event)
    if config.training.precision == "bf16":
        warn_without_bf16(device, on_event)
    return device


def _check_base(config: Config, base: Base, layers: dict[str, LoraLayer], start: Path | None, on_event: Sink) -> None:
    """Whether what is adapted, and the LoRA that is started from, go with the base model."""
    if not base.embeds_guidance:
        on_event(
            Warning(
                f"{base.name} has no guidance embedding, as FLUX.1-schnell: it is distilled to a few steps, and what "
                "training teaches it wears that off",
                where="model.base",
                hint="train on black-forest-labs/FLUX.1-dev, unless it must be this model",
            )
        )
    if start or not isinstance(config.lora.targets, str):
        transformer = empty_transformer(base.family, transformer_config(base.family, base.folder))
        paths = target_layers(transformer, config.lora, base.family)
        if start and (fresh := require_fit(layers, transformer, paths, config.lora, base.family, str(start))):
            on_event(
                Warning(
                    f"this LoRA has {len(layers)} of the {len(paths)} layers of lora.targets: the other {len(fresh)} "
                    "begin at zero",
                    where=str(start),
                )
            )
    settled_memory(config, base.family)


def _shown_caption(pictures: list[Picture]) -> str:
    """The caption that previews show where no prompts are set: the first one of the subject."""
    return next((picture.caption for picture in pictures if picture.is_subject), pictures[0].caption)


def _check_together(config: Config) -> None:
    problems: list[FluxtuneError] = list(contradictions(config, {}))
    if not config.dataset.folders:
        problems.append(
            UsageError(
                "no pictures were named",
                where="dataset.folders",
                hint="name a folder of pictures: fluxtune train FOLDER",
            )
        )
    if problems:
        raise ConfigError(problems)
