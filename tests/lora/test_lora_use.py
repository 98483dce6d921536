"""How a LoRA is asked for on the command line, and what its scales mean for its layers."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from fluxtune.config.lora import LayerGroup
from fluxtune.errors import ExitCode, UsageError
from fluxtune.flux.families import FAMILIES, FLUX1
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.use import LoraUse, lora_use, spelled

LAYERS = {
    "double attention": "transformer.transformer_blocks.0.attn.to_q",
    "double mlp": "transformer.transformer_blocks.0.ff.net.2",
    "double modulation": "transformer.transformer_blocks.0.norm1.linear",
    "single attention": "transformer.single_transformer_blocks.7.attn.to_v",
    "single mlp": "transformer.single_transformer_blocks.7.proj_mlp",
    "outside": "transformer.x_embedder",
    "clip": "text_encoder.text_model.encoder.layers.0.mlp.fc1",
}


def scales(use: LoraUse) -> dict[str, float]:
    layer = LoraLayer(torch.ones(1, 1), torch.ones(1, 1), 2.0)
    acting = use.acting(dict.fromkeys(LAYERS.values(), layer), FLUX1.lora_groups)
    return {name: acting[path].scale / 2.0 for name, path in LAYERS.items()}


@pytest.mark.parametrize(
    ("text", "use"),
    [
        ("mug.safetensors", LoraUse(Path("mug.safetensors"))),
        ("mug.safetensors:0.8", LoraUse(Path("mug.safetensors"), 0.8)),
        ("mug.safetensors:-1e-1", LoraUse(Path("mug.safetensors"), -0.1)),
        (
            "mug.safetensors:double=.5,single=1",
            LoraUse(Path("mug.safetensors"), 1.0, (("double", 0.5), ("single", 1.0))),
        ),
        ("mug.safetensors:0.8, mlp=0", LoraUse(Path("mug.safetensors"), 0.8, (("mlp", 0.0),))),
        ("a:b.safetensors:*.to_q=2", LoraUse(Path("a:b.safetensors"), 1.0, (("*.to_q", 2.0),))),
        ("C:\\mug.safetensors", LoraUse(Path("C:\\mug.safetensors"))),
    ],
)
def test_a_lora_is_asked_for_with_a_scale_and_scales_of_groups(text: str, use: LoraUse) -> None:
    assert lora_use(text) == use


def test_a_file_whose_name_looks_like_a_scale_is_that_file(tmp_path: Path) -> None:
    named = tmp_path / "mug:0.8"
    named.touch()
    assert lora_use(str(named)) == LoraUse(named)


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        ("nan", "wanted a finite number"),
        ("single=inf", "wanted a finite number"),
        ("doubel=0.5", "'doubel' is no group of layers: there are double, single, outside"),
        ("single=half", "'single=half' is no scale"),
        ("0.5;single=1", "is no scale"),
    ],
)
def test_what_is_no_scale_is_told_with_an_example(tail: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mug.safetensors").touch()
    with pytest.raises(UsageError, match=message) as error:
        lora_use(f"{tmp_path / 'mug.safetensors'}:{tail}")
    assert error.value.exit_code == ExitCode.USAGE
    assert error.value.hint and f"{tmp_path / 'mug.safetensors'}:double=0.5,single=1" in error.value.hint


def test_a_group_multiplies_the_scale_of_its_layers_alone() -> None:
    assert scales(LoraUse(Path("mug"), 0.5)) == dict.fromkeys(LAYERS, 0.5)
    assert scales(lora_use("mug:0.5,single=0")) == {name: 0.0 if "single" in name else 0.5 for name in LAYERS}
    assert scales(lora_use("mug:attention=0.25,single=2")) == {
        **dict.fromkeys(LAYERS, 1.0),
        "double attention": 0.25,
        "single attention": 0.5,
        "single mlp": 2.0,
    }
    assert scales(lora_use("mug:modulation=3,outside=4,text=5")) == {
        **dict.fromkeys(LAYERS, 1.0),
        "double modulation": 3.0,
        "outside": 4.0,
        "clip": 5.0,
    }


def test_a_pattern_names_layers_like_lora_targets() -> None:
    assert scales(lora_use("mug:transformer_blocks.*.attn.*=0.5")) == {
        **dict.fromkeys(LAYERS, 1.0),
        "double attention": 0.5,
    }


def test_every_family_has_patterns_for_every_group_that_can_be_named() -> None:
    for family in FAMILIES:
        assert tuple(family.lora_groups) == get_args(LayerGroup)


def test_a_scale_is_shown_as_it_is_asked_for() -> None:
    for text in ("0.8", "1,double=0.5,single=1"):
        use = lora_use(f"mug:{text}")
        assert spelled(use.scale, use.groups) == text
