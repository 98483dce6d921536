"""Pictures that the base model makes of what it should not forget (prior preservation, arXiv 2208.12242)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fluxtune import rng
from fluxtune.config.schema import Config
from fluxtune.dataset.cache import key_of
from fluxtune.events import Phase, Progress, Sink
from fluxtune.flux.base import Base
from fluxtune.flux.denoise import Request, generate_latents, looking_ahead
from fluxtune.flux.families import Text
from fluxtune.flux.load import free_memory, image_pipeline, load_vae
from fluxtune.training.examples import Prepared

_DENOISING_STEPS = 20


@dataclass(frozen=True)
class Prior:
    """One picture of the base model: its prompt and its patchified latents ``[features, h, w]``."""

    prompt: str
    latents: torch.Tensor


def prior_prompts(config: Config) -> list[str]:
    """The prompts of the prior pictures: the preservation prompts, or the class word."""
    preservation = config.training.preservation
    return preservation.prompts or [config.dataset.class_word or ""]


def prior_requests(
    config: Config, base: Base, text_keys: Mapping[str, str], dtype: torch.dtype, device: str
) -> dict[str, Request]:
    """How each prior picture is made, by its key in the cache; none without prior preservation.

    Args:
        text_keys: of the embeddings of the prompts, at least.
        dtype: what training computes in.
    """
    preservation = config.training.preservation
    if preservation.method != "prior":
        return {}
    prompts = prior_prompts(config)
    side = config.dataset.resolution[0]
    mark = base.fingerprint("transformer", "scheduler")
    memory = config.memory
    how = (mark, memory.base_precision, memory.modulation, str(dtype), torch.device(device).type)
    requests = [
        Request(
            prompt=prompts[index % len(prompts)],
            width=side,
            height=side,
            steps=_DENOISING_STEPS,
            guidance=base.family.sampling_guidance,
            seed=rng.derive(config.training.seed, "prior", index) % 2**31,
        )
        for index in range(preservation.pictures)
    ]
    return {key_of("prior", *how, text_keys[each.prompt], *vars(each).values()): each for each in requests}


def make_priors(base: Base, prepared: Prepared, transformer: Any, on_event: Sink) -> list[Prior]:
    """Generate, or take from the cache, the prior pictures; must run before an adapter is attached."""
    store, requests = prepared.priors, prepared.prior_requests
    missing = store.missing(requests)
    on_event(Phase("make prior pictures", f"{len(missing)} new, {len(requests) - len(missing)} from the cache"))
    if missing:
        pipeline = image_pipeline(base, transformer, load_vae(base, transformer.dtype, str(transformer.device)))

        def text_of(prompt: str) -> Text:
            return {name: tensor.to(transformer.device) for name, tensor in prepared.text(prompt).items()}

        started = time.monotonic()
        ahead = looking_ahead(base, pipeline, [requests[key] for key in missing], text_of)
        with store.writing() as write:
            for done, (key, request) in enumerate(zip(missing, ahead, strict=True), start=1):
                latents = generate_latents(base, pipeline, text_of(request.prompt), request)
                write(key, {"latents": latents[0].float().cpu()})
                rate = done / max(1e-9, time.monotonic() - started)
                on_event(Progress("prior pictures", done, len(missing), "pictures", rate, (len(missing) - done) / rate))
        del pipeline
        free_memory()
    return [Prior(request.prompt, store.read(key)["latents"]) for key, request in requests.items()]
