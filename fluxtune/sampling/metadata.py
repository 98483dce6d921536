"""What a picture says about itself: everything needed to make it again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fluxtune.environment.device import versions
from fluxtune.files import sha256_of
from fluxtune.flux.base import Base
from fluxtune.flux.denoise import Request
from fluxtune.lora.use import spelled
from fluxtune.redaction import for_sharing, redacted
from fluxtune.sampling.loras import Lora
from fluxtune.sampling.picture_files import SCHEMA, Told
from fluxtune.sampling.request import SampleRequest
from fluxtune.sampling.wanted import Place, Wanted


def base_facts(sampled: SampleRequest, base: Base) -> dict[str, Any]:
    """Which base model: a hub's by its id and commit, others by their name and their files' fingerprint."""
    name = sampled.model.base
    if base.commit is not None and not base.files:
        return {"base": name, "revision": base.commit}
    return {
        "base": Path(name).name if base.commit is None else name,
        "base_files": {part: file.name for part, file in base.files.items()},
        "revision": base.commit,
        "base_fingerprint": base.fingerprint("transformer", "vae", *base.family.text_folders),
    }


def told_of_picture(
    sampled: SampleRequest,
    base: dict[str, Any],
    picture: Request,
    place: Place,
    written: Wanted,
    loras: Sequence[Lora],
    device: str,
) -> Told:
    """All that decides one picture's pixels. Files go by name and SHA-256, never by path: pictures are shared.

    Args:
        base: from ``base_facts``.
        written: what the picture was asked for as.
    """
    facts = {
        "schema": SCHEMA,
        "prompt": picture.prompt,
        **_drawn(picture, written),
        "seed": picture.seed,
        "steps": picture.steps,
        "guidance": picture.guidance,
        "width": picture.width,
        "height": picture.height,
        **_led_away(picture),
        **_started(picture),
        **({"batch": {"size": place.size, "index": place.index}} if place.size > 1 else {}),
        **base,
        "base_precision": sampled.memory.base_precision,
        "modulation": sampled.memory.modulation,
        "text_precision": sampled.memory.text_precision,
        "vae_tiling": sampled.memory.vae_tiling,
        **({"compile": True} if sampled.sampling.compile else {}),
        "precision": sampled.precision,
        "device": device,
        "loras": [
            {
                "name": lora.name,
                "file": lora.path.name,
                "sha256": lora.sha256,
                "scale": lora.scale,
                **({"groups": [list(each) for each in lora.groups]} if lora.groups else {}),
            }
            for lora in loras
        ],
        "versions": versions(),
    }
    shared = redacted(facts, for_sharing)
    if shared != facts:
        # Another prompt than was painted cannot be painted again.
        shared["redacted"] = True
    return Told(shared, for_sharing(_parameters(facts, loras)))


def told_of_grid(pictures: Sequence[Told]) -> Told:
    """Of a grid the facts of each of its pictures, row by row."""
    return Told({"schema": SCHEMA, "pictures": [told.facts for told in pictures]}, "")


def _drawn(picture: Request, written: Wanted) -> dict[str, Any]:
    """The prompt before anything was drawn from it."""
    return {} if written.template in (None, picture.prompt) else {"template": written.template}


def _led_away(picture: Request) -> dict[str, Any]:
    if picture.negative_prompt is None:
        return {}
    return {"negative_prompt": picture.negative_prompt, "true_guidance": picture.true_guidance}


def _started(picture: Request) -> dict[str, Any]:
    if picture.start is None:
        return {}
    path = picture.start.path
    return {"start": {"file": path.name, "sha256": sha256_of(path), "strength": picture.start.strength}}


def _parameters(facts: dict[str, Any], loras: Sequence[Lora]) -> str:
    """The usual form: the prompt with its LoRA tags, the negative prompt, then one line of ``Name: value``."""
    tags = "".join(f" <lora:{lora.path.stem}:{spelled(lora.scale, lora.groups)}>" for lora in loras)
    negative = facts.get("negative_prompt")
    settings = {
        "Steps": facts["steps"],
        "Sampler": "Euler",
        "CFG scale": f"{facts.get('true_guidance', 1):g}",
        "Distilled CFG Scale": facts["guidance"],
        "Seed": facts["seed"],
        "Size": f"{facts['width']}x{facts['height']}",
        "Model": facts["base"].rpartition("/")[2],
    }
    if "start" in facts:
        settings["Denoising strength"] = facts["start"]["strength"]
    if loras:
        # User interfaces know a LoRA by the hash of its tensors, where its header has it.
        hashes = [f"{lora.path.stem}: {lora.metadata.get('sshs_model_hash', lora.sha256)[:12]}" for lora in loras]
        settings["Lora hashes"] = json.dumps(", ".join(hashes), ensure_ascii=False)
    settings["Version"] = f"fluxtune {facts['versions'].get('fluxtune', '')}".strip()
    lines = [f"{facts['prompt']}{tags}"]
    lines += [f"Negative prompt: {negative}"] if negative else []
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in settings.items())])
