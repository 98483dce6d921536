from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from fluxtune.sampling.generate import sample
from fluxtune.sampling.request import LoraUse, SampleRequest


def test_a_picture_carries_what_made_it(request_for: Callable[..., SampleRequest], lora: Path) -> None:
    prompt = 'ein "roter" Ball, 日本 <ok>'
    made = sample(request_for(prompts=(prompt,), loras=(LoraUse(lora, 0.5),)))
    text = Image.open(made.pictures[0]).text  # type: ignore[attr-defined]
    facts = json.loads(text["fluxtune"])
    assert facts["prompt"] == prompt
    assert (facts["seed"], facts["steps"], facts["guidance"]) == (7, 2, 3.5)
    assert (facts["width"], facts["height"]) == (64, 96)
    assert facts["loras"][0]["scale"] == 0.5
    assert len(facts["loras"][0]["sha256"]) == 64
    assert facts["versions"]["diffusers"]
    words, settings = text["parameters"].split("\n")
    assert words == f"{prompt} <lora:mug:0.5>"
    assert settings.startswith("Steps: 2, Sampler: Euler, CFG scale: 1, Distilled CFG Scale: 3.5, Seed: 7, Size: 64x96")


def test_a_picture_tells_no_local_path(request_for: Callable[..., SampleRequest], lora: Path, tiny_flux: Path) -> None:
    made = sample(request_for(loras=(LoraUse(lora),)))
    content = made.pictures[0].read_bytes()
    for folder in (lora.parent, tiny_flux.parent):
        assert str(folder).encode() not in content
