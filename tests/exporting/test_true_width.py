"""Exports for a FLUX whose layers have their true shapes: one block of each kind, at width 3072, of random weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from merge_oracle import merged
from safetensors.torch import load_file

from fluxtune.exporting.conversion import Wanted, convert, write
from fluxtune.exporting.limits import read_by_diffusers
from fluxtune.flux.families import FLUX1
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.attached import set_acting
from fluxtune.lora.conventions import LoraFormat
from fluxtune.lora.low_rank import distance
from fluxtune.lora.reading import read_lora_file

pytestmark = pytest.mark.slow

Layers = dict[str, LoraLayer]
IN_BLOCKS = ("transformer.transformer_blocks.", "transformer.single_transformer_blocks.")


@pytest.fixture(scope="module")
def transformer() -> Iterator[Any]:
    """0.5 billion float32 weights: the same random numbers over and over, small enough for values to stay small."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    numbers = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)) * 0.02
    model = model.to_empty(device="cpu").requires_grad_(False).eval()
    for parameter in model.parameters():
        flat = parameter.view(-1)
        for start in range(0, len(flat), len(numbers)):
            flat[start : start + len(numbers)] = numbers[: len(flat) - start]
    yield model


@pytest.fixture(scope="module")
def layers(transformer: Any) -> Layers:
    """A LoRA of every linear layer, with ranks and scales of their own."""
    generator = torch.Generator().manual_seed(1)
    made = {}
    for number, (path, linear) in enumerate(
        (path, each) for path, each in transformer.named_modules() if isinstance(each, torch.nn.Linear)
    ):
        rank = 2 + number % 3
        a = torch.randn(rank, linear.in_features, generator=generator) / linear.in_features**0.5
        b = torch.randn(linear.out_features, rank, generator=generator) * 0.2
        made[f"transformer.{path}"] = LoraLayer(a, b, (0.5, 1.0)[number % 2])
    return made


@pytest.fixture(scope="module")
def files(layers: Layers, tmp_path_factory: pytest.TempPathFactory) -> dict[LoraFormat, Path]:
    folder = tmp_path_factory.mktemp("true")
    return {form: write(layers, {}, Wanted(form, folder / f"{form}.safetensors", "fp32")).file for form in LoraFormat}


def velocity(transformer: Any, layers: Mapping[str, LoraLayer] | None = None) -> torch.Tensor:
    """What the model answers to a fixed input, with some layers acting."""
    generator = torch.Generator().manual_seed(3)
    text = {
        "prompt_embeds": torch.randn(1, 8, 4096, generator=generator),
        "pooled_prompt_embeds": torch.randn(1, 768, generator=generator),
    }
    noisy = torch.randn(1, 64, 4, 6, generator=generator)
    if layers is not None:
        own = {path.removeprefix("transformer."): layer for path, layer in layers.items()}
        set_acting(transformer, {"lora": own})
    with torch.no_grad():
        answer = torch.as_tensor(FLUX1.forward(transformer, noisy, torch.tensor([0.6]), text, 3.5))
    if layers is not None:
        set_acting(transformer, {})
    return answer


def apart(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).norm() / second.norm())


@pytest.mark.parametrize(("first", "second"), product(LoraFormat, LoraFormat))
def test_every_round_trip_keeps_every_layers_change(
    first: LoraFormat, second: LoraFormat, files: dict[LoraFormat, Path], layers: Layers, tmp_path: Path
) -> None:
    made = convert(files[first], Wanted(second, tmp_path / "made.safetensors", "fp32"))
    back = read_lora_file(made.file).layers
    assert set(back) == set(layers)
    assert max(distance(layer, back[path]) for path, layer in layers.items()) < 1e-6
    # Diffusers reads OneTrainer's names of attention alone.
    assert (made.diffusers_error is None) == (second is LoraFormat.ONETRAINER)


@pytest.mark.parametrize("form", LoraFormat)
def test_every_format_has_the_same_output(
    form: LoraFormat, files: dict[LoraFormat, Path], layers: Layers, transformer: Any
) -> None:
    wanted = velocity(transformer, layers)
    assert apart(velocity(transformer, read_lora_file(files[form]).layers), wanted) < 1e-4
    assert apart(velocity(transformer), wanted) > 0.05


@pytest.mark.parametrize("form", [LoraFormat.KOHYA, LoraFormat.COMFYUI, LoraFormat.DIFFUSERS, LoraFormat.AI_TOOLKIT])
@pytest.mark.parametrize("left_out", ["nothing", "attn.to_k", "proj_mlp"])
def test_diffusers_own_loader_makes_the_same_output_of_an_exported_file(
    form: LoraFormat, left_out: str, layers: Layers, transformer: Any, tmp_path: Path
) -> None:
    own = {path: layer for path, layer in layers.items() if path.startswith(IN_BLOCKS) and not path.endswith(left_out)}
    assert read_by_diffusers(own, form, FLUX1) == set(own)
    file = write(own, {}, Wanted(form, tmp_path / "made.safetensors", "fp32")).file
    state, alphas = FluxPipeline.lora_state_dict(str(file), return_alphas=True)
    FluxPipeline.load_lora_into_transformer(state, alphas, transformer, adapter_name="theirs")
    seen = velocity(transformer)
    transformer.delete_adapters("theirs")
    assert apart(seen, velocity(transformer, own)) < 1e-4


@pytest.mark.parametrize("form", [LoraFormat.DIFFUSERS, LoraFormat.KOHYA])
def test_rows_of_the_checkpoints_own_weights_change_as_the_layers_say(
    form: LoraFormat, files: dict[LoraFormat, Path], layers: Layers
) -> None:
    changes = merged(load_file(files[form]), 1, 1)
    linear1 = changes["single_blocks.0.linear1"]
    for name, rows in (("attn.to_k", slice(3072, 6144)), ("proj_mlp", slice(9216, 21504))):
        layer = layers[f"transformer.single_transformer_blocks.0.{name}"]
        wanted = layer.scale * layer.b @ layer.a
        assert apart(linear1[rows].float(), wanted) < 1e-5
