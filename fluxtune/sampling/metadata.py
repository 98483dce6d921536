"""What a picture says about itself: everything needed to make it again, as PNG text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL.PngImagePlugin import PngInfo

from fluxtune.environment import versions
from fluxtune.flux.denoise import Request
from fluxtune.sampling.loras import Lora
from fluxtune.sampling.request import SampleRequest

SCHEMA = 1


def picture_facts(sampled: SampleRequest, picture: Request, loras: Sequence[Lora], device: str) -> dict[str, Any]:
    """All that decides one picture's pixels. Files go by name and SHA-256, never by path: pictures are shared."""
    model = sampled.model
    return {
        "schema": SCHEMA,
        "prompt": picture.prompt,
        "seed": picture.seed,
        "steps": picture.steps,
        "guidance": picture.guidance,
        "width": picture.width,
        "height": picture.height,
        "base": Path(model.base).name if Path(model.base).exists() else model.base,
        "revision": model.revision,
        "base_precision": sampled.memory.base_precision,
        "text_precision": sampled.memory.text_precision,
        "precision": sampled.precision,
        "device": device,
        "loras": [
            {"name": lora.name, "file": lora.path.name, "sha256": lora.sha256, "scale": lora.scale} for lora in loras
        ],
        "versions": versions(),
    }


def png_text(facts: dict[str, Any], loras: Sequence[Lora]) -> PngInfo:
    """PNG text of a picture: ``fluxtune`` as JSON, and ``parameters`` in the line that user interfaces show."""
    info = PngInfo()
    info.add_text("fluxtune", json.dumps(facts))
    info.add_text("parameters", _parameters(facts, loras))
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
