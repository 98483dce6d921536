"""DoRA beside its base model: in pictures and fused exactly, as a plain LoRA as near as a rank allows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_files import weights_of
from safetensors.torch import load_file, save_file

from fluxtune.config.memory import MemoryConfig
from fluxtune.config.model import ModelConfig
from fluxtune.errors import BaseModelError
from fluxtune.events import Event, Warning, ignore
from fluxtune.exporting.conversion import Wanted, convert
from fluxtune.exporting.fusing import fuse
from fluxtune.exporting.inspection import inspect
from fluxtune.exporting.methods import Checkpoint
from fluxtune.flux.base import Base, open_base
from fluxtune.flux.load import load_transformer
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.attached import set_acting
from fluxtune.lora.conventions import LoraFormat
from fluxtune.lora.reading import read_lora_file
from fluxtune.lora.use import LoraUse
from fluxtune.sampling.loras import open_lora

FP32 = MemoryConfig(base_precision="fp32", text_precision="fp32")
Q, K, V = (f"transformer_blocks.0.attn.to_{name}" for name in "qkv")
OUT = "norm_out.linear"
Weights = dict[str, torch.Tensor]
Dora = tuple[Path, Weights]


@pytest.fixture(scope="module")
def base(tiny_flux: Path) -> Base:
    return open_base(ModelConfig(base=str(tiny_flux)))


@pytest.fixture(scope="module")
def weights(tiny_flux: Path) -> Weights:
    return weights_of(tiny_flux, "transformer")


def pair(weights: Weights, path: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    height, width = weights[f"{path}.weight"].shape
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, width, generator=generator), torch.randn(height, 4, generator=generator) * 0.05


def directed(changed: torch.Tensor, magnitude: torch.Tensor, dim: int) -> torch.Tensor:
    """The paper's formula, the norm along ``dim``."""
    return magnitude.unsqueeze(dim) * changed / changed.norm(dim=dim, keepdim=True)


def of_peft(weights: Weights) -> tuple[Weights, Weights]:
    """A file as peft writes it, and the weights that it makes."""
    a, b = pair(weights, Q, 1)
    changed = weights[f"{Q}.weight"] + b @ a
    magnitude = changed.norm(dim=1) * torch.linspace(0.8, 1.3, len(b))
    tensors = {f"transformer.{Q}.lora_A.weight": a, f"transformer.{Q}.lora_B.weight": b}
    return tensors | {f"transformer.{Q}.lora_magnitude_vector": magnitude}, {Q: directed(changed, magnitude, 1)}


def of_kohya(weights: Weights) -> tuple[Weights, Weights]:
    """Of a fused layer, with an alpha; and of the layer whose halves stand in the other order."""
    name, parts = "lora_unet_double_blocks_0_img_attn_qkv", (Q, K, V)
    fused = torch.cat([weights[f"{path}.weight"] for path in parts])
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(4, fused.shape[1], generator=generator)
    b = torch.randn(fused.shape[0], 4, generator=generator) * 0.05
    changed = fused + 0.5 * b @ a
    magnitude = changed.norm(dim=1) * torch.linspace(0.9, 1.2, len(b))
    tensors = {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b, f"{name}.alpha": torch.tensor(2.0)}
    tensors[f"{name}.dora_scale"] = magnitude[:, None]
    made = dict(zip(parts, directed(changed, magnitude, 1).chunk(3), strict=True))
    other, (down, up) = "lora_unet_final_layer_adaLN_modulation_1", pair(weights, OUT, 3)
    swapped = torch.cat(weights[f"{OUT}.weight"].chunk(2)[::-1]) + up @ down
    own = swapped.norm(dim=1) * torch.linspace(0.7, 1.1, len(up))
    tensors |= {f"{other}.lora_down.weight": down, f"{other}.lora_up.weight": up, f"{other}.dora_scale": own[:, None]}
    return tensors, made | {OUT: torch.cat(directed(swapped, own, 1).chunk(2)[::-1])}


def of_columns(weights: Weights) -> tuple[Weights, Weights]:
    """As older LyCORIS writes it: a magnitude for each column of a fused layer."""
    name, parts = "lora_unet_double_blocks_0_img_attn_qkv", (Q, K, V)
    fused = torch.cat([weights[f"{path}.weight"] for path in parts])
    generator = torch.Generator().manual_seed(4)
    a = torch.randn(4, fused.shape[1], generator=generator)
    b = torch.randn(fused.shape[0], 4, generator=generator) * 0.05
    changed = fused + b @ a
    magnitude = changed.norm(dim=0) * torch.linspace(0.9, 1.2, fused.shape[1])
    tensors = {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b, f"{name}.dora_scale": magnitude[None]}
    return tensors, dict(zip(parts, directed(changed, magnitude, 0).chunk(3), strict=True))


KINDS: dict[str, Callable[[Weights], tuple[Weights, Weights]]] = {
    "peft": of_peft,
    "kohya": of_kohya,
    "columns": of_columns,
}


@pytest.fixture(params=KINDS)
def dora(request: pytest.FixtureRequest, weights: Weights, tmp_path: Path) -> Dora:
    """A file, and by the formula the weights that it makes."""
    tensors, made = KINDS[request.param](weights)
    save_file(tensors, tmp_path / "dora.safetensors")
    return tmp_path / "dora.safetensors", made


def velocity(base: Base, transformer: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    text = {
        "prompt_embeds": torch.randn(1, 6, 32, generator=generator),
        "pooled_prompt_embeds": torch.randn(1, 32, generator=generator),
    }
    with torch.no_grad():
        noisy = torch.randn(1, 64, 4, 6, generator=generator)
        return torch.as_tensor(base.family.forward(transformer, noisy, torch.tensor([0.6]), text, 3.5))


def with_weights(base: Base, changes: Weights) -> Any:
    transformer = load_transformer(base, FP32, torch.float32, "cpu")
    for path, weight in changes.items():
        transformer.get_submodule(path).weight.data = weight
    return transformer


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_dora_acts_as_the_formula_says(base: Base, weights: Weights, dora: Dora, scale: float) -> None:
    file, made = dora
    wanted = {path: weights[f"{path}.weight"].lerp(weight, scale) for path, weight in made.items()}
    transformer = load_transformer(base, FP32, torch.float32, "cpu")
    acting = open_lora(LoraUse(file, scale), base).acting()
    set_acting(transformer, {"dora": {path.removeprefix("transformer."): layer for path, layer in acting.items()}})
    expected = velocity(base, with_weights(base, wanted))
    assert torch.allclose(velocity(base, transformer), expected, atol=1e-5)
    assert not torch.allclose(expected, velocity(base, with_weights(base, {})), atol=1e-3)


def test_a_dora_is_fused_exactly(base: Base, weights: Weights, dora: Dora, tmp_path: Path) -> None:
    file, made = dora
    lora = open_lora(LoraUse(file, 0.5), base)
    fused = fuse(base, [(lora.acting(), 1.0)], Checkpoint.DIFFUSERS, tmp_path / "fused", "fp32", ignore)
    (stored,) = (load_file(each) for each in fused.files)
    for path, weight in made.items():
        assert torch.allclose(stored[f"{path}.weight"], weights[f"{path}.weight"].lerp(weight, 0.5), atol=1e-5), path


def test_a_dora_becomes_a_plain_lora_with_its_base_and_says_what_is_lost(
    base: Base, weights: Weights, dora: Dora, tmp_path: Path
) -> None:
    file, made = dora
    events: list[Event] = []
    plain = convert(
        file, Wanted(LoraFormat.DIFFUSERS, tmp_path / "plain.safetensors", "fp32"), events.append, base=base
    )
    layers = read_lora_file(plain.file, base.family).layers
    assert {path.removeprefix("transformer.") for path in layers} == set(made)

    def error(path: str, layer: LoraLayer) -> float:
        change = made[path] - weights[f"{path}.weight"]
        return float((layer.scale * layer.b @ layer.a - change).norm() / change.norm())

    # All of these matrices have a rank of 64 at most, and a plain LoRA has up to 128.
    assert max(error(path.removeprefix("transformer."), layer) for path, layer in layers.items()) < 1e-4
    assert not [event for event in events if isinstance(event, Warning) and "loses" in event.message]


def test_a_dora_without_a_base_is_refused_and_told_what_to_do(dora: Dora, tmp_path: Path) -> None:
    with pytest.raises(
        BaseModelError, match=r"is a DoRA, whose change depends on the base model's own weights"
    ) as error:
        convert(dora[0], Wanted(LoraFormat.DIFFUSERS, tmp_path / "plain.safetensors"))
    assert "--base MODEL" in (error.value.hint or "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dora.safetensors"]


def test_a_dora_is_described_without_its_base_but_for_how_much_it_changes(dora: Dora) -> None:
    file, made = dora
    found = inspect(file)
    tensors = load_file(file)
    magnitudes = sum(each.numel() for key, each in tensors.items() if key.endswith(("magnitude_vector", "dora_scale")))
    assert set(found.kinds) == {"DoRA"} and found.magnitudes == magnitudes > 0
    assert sum(group.layers for group in found.groups) == len(made)
    assert {rank for group in found.groups for rank in group.ranks} == {4}
    assert {alpha for group in found.groups for alpha in group.alphas} <= {"4", "2"}
    assert {group.norm for group in found.groups} == set(found.blocks.values()) == {None}


def test_with_its_base_a_dora_is_described_with_what_it_changes_by_the_formula(
    base: Base, weights: Weights, dora: Dora
) -> None:
    file, made = dora
    found = inspect(file, open_model=lambda: base)
    squared: dict[str, float] = {}
    for path, weight in made.items():
        block = "double 0" if path.startswith("transformer_blocks.0.") else "outside"
        squared[block] = squared.get(block, 0.0) + float((weight - weights[f"{path}.weight"]).square().sum())
    assert found.blocks == pytest.approx({block: each**0.5 for block, each in squared.items()}, rel=1e-4)
    assert sum(group.norm**2 for group in found.groups if group.norm) == pytest.approx(sum(squared.values()), rel=1e-4)
