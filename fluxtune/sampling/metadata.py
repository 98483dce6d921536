"""What a picture says about itself: everything needed to make it again, as PNG text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL.PngImagePlugin import PngInfo

from fluxtune.environment.device import versions
from fluxtune.flux.base import Base
from fluxtune.flux.denoise import Request
from fluxtune.redaction import for_sharing, redacted
from fluxtune.sampling.loras import Lora
from fluxtune.sampling.request import SampleRequest

SCHEMA = 1


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


def picture_facts(
    sampled: SampleRequest, base: dict[str, Any], picture: Request, loras: Sequence[Lora], device: str
) -> dict[str, Any]:
    """All that decides one picture's pixels. Files go by name and SHA-256, never by path: pictures are shared.

    Args:
        base: from ``base_facts``.
    """
    return {
        "schema": SCHEMA,
        "prompt": picture.prompt,
        "seed": picture.seed,
        "steps": picture.steps,
        "guidance": picture.guidance,
        "width": picture.width,
        "height": picture.height,
        **base,
        "base_precision": sampled.memory.base_precision,
        "modulation": sampled.memory.modulation,
        "text_precision": sampled.memory.text_precision,
        "vae_tiling": sampled.memory.vae_tiling,
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


def png_text(facts: dict[str, Any], loras: Sequence[Lora]) -> PngInfo:
    """PNG text of a picture: ``fluxtune`` as JSON, and ``parameters`` in the line that user interfaces show."""
    info = PngInfo()
    info.add_text("fluxtune", json.dumps(redacted(facts, for_sharing)))
    info.add_text("parameters", for_sharing(_parameters(facts, loras)))
    return info


def grid_text(facts: Sequence[dict[str, Any]]) -> PngInfo:
    """PNG text of a grid: ``fluxtune`` as JSON, with the facts of each of its pictures, row by row."""
    info = PngInfo()
    info.add_text("fluxtune", json.dumps({"schema": SCHEMA, "pictures": redacted(list(facts), for_sharing)}))
    return info


def _parameters(facts: dict[str, Any], loras: Sequence[Lora]) -> str:
    """The usual form: the prompt with its LoRA tags, then one line of ``Name: value``."""
    tags = "".join(f" <lora:{lora.path.stem}:{lora.scale:g}>" for lora in loras)
    settings = {
        "Steps": facts["steps"],
        "Sampler": "Euler",
        "CFG scale": 1,
        "Distilled CFG Scale": facts["guidance"],
        "Seed": facts["seed"],
        "Size": f"{facts['width']}x{facts['height']}",
        "Model": facts["base"].rpartition("/")[2],
    }
    if loras:
        # User interfaces know a LoRA by the hash of its tensors, where its header has it.
        hashes = [f"{lora.path.stem}: {lora.metadata.get('sshs_model_hash', lora.sha256)[:12]}" for lora in loras]
        settings["Lora hashes"] = json.dumps(", ".join(hashes), ensure_ascii=False)
    settings["Version"] = f"fluxtune {facts['versions'].get('fluxtune', '')}".strip()
    return f"{facts['prompt']}{tags}\n" + ", ".join(f"{name}: {value}" for name, value in settings.items())
