from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fluxtune.config.model import ModelConfig
from fluxtune.flux.base import open_base
from fluxtune.lora.use import LoraUse
from fluxtune.sampling.generate import sample
from fluxtune.sampling.metadata import base_facts
from fluxtune.sampling.request import SampleRequest


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


def test_a_grid_carries_what_made_each_of_its_pictures(request_for: Callable[..., SampleRequest], lora: Path) -> None:
    made = sample(request_for(loras=(LoraUse(lora),), seeds=(7, 8), compare=True))
    assert made.grid is not None
    facts = json.loads(Image.open(made.grid).text["fluxtune"])["pictures"]  # type: ignore[attr-defined]
    own = [json.loads(Image.open(path).text["fluxtune"]) for path in made.pictures]  # type: ignore[attr-defined]
    assert facts == own


def test_a_local_base_is_known_by_its_files(request_for: Callable[..., SampleRequest], tiny_flux: Path) -> None:
    made = sample(request_for())
    facts = json.loads(Image.open(made.pictures[0]).text["fluxtune"])  # type: ignore[attr-defined]
    base = open_base(ModelConfig(base=str(tiny_flux)))
    parts = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    assert facts["base"] == tiny_flux.name
    assert facts["base_fingerprint"] == base.fingerprint(*parts)


def test_a_base_from_the_hub_is_known_by_its_commit(
    request_for: Callable[..., SampleRequest], tiny_flux: Path, tmp_path: Path
) -> None:
    snapshot = tmp_path / "models--org--model" / "snapshots" / ("0123456789" * 4)
    shutil.copytree(tiny_flux, snapshot)
    base = open_base(ModelConfig(base=str(snapshot)))
    request = request_for(model=ModelConfig(base="org/model", revision="main"))
    assert base_facts(request, base) == {"base": "org/model", "revision": snapshot.name}


def test_a_picture_tells_neither_tokens_nor_the_home_folder(
    request_for: Callable[..., SampleRequest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "a-token-of-no-known-form")
    made = sample(request_for(prompts=(f"{tmp_path}/x and a-token-of-no-known-form",), seeds=(7, 8), compare=False))
    for path in made.pictures:
        text = Image.open(path).text  # type: ignore[attr-defined]
        assert json.loads(text["fluxtune"])["prompt"] == "~/x and ***"
        assert text["parameters"].startswith("~/x and ***\n")
