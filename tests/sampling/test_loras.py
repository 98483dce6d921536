from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import save_file
from stock_flux import LAYERS, PROMPT, lora_tensors

from fluxtune.config.memory import MemoryConfig
from fluxtune.config.model import ModelConfig
from fluxtune.errors import BaseModelError, ExitCode, StorageError, UsageError
from fluxtune.flux.base import Base, open_base
from fluxtune.flux.load import image_pipeline, load_text_pipeline, load_transformer, load_vae
from fluxtune.lora.use import LoraUse
from fluxtune.sampling.loras import apply_to_text_encoder, apply_to_transformer, base_of, open_lora

FP32 = MemoryConfig(base_precision="fp32", text_precision="fp32")
TEXT_LAYER = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
Stock = Callable[[], FluxPipeline]


@pytest.fixture(scope="module")
def base(tiny_flux: Path) -> Base:
    return open_base(ModelConfig(base=str(tiny_flux)))


@pytest.fixture(scope="module")
def tensors(stock: Stock) -> dict[str, torch.Tensor]:
    return lora_tensors(stock(), 1)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(tensors: dict[str, torch.Tensor], name: str = "mug.safetensors", **metadata: str) -> Path:
        save_file(tensors, tmp_path / name, metadata={"format": "pt", **metadata})
        return tmp_path / name

    return write


def velocity(transformer: Any) -> torch.Tensor:
    """The transformer's answer to a fixed input."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        return transformer(
            hidden_states=torch.randn(1, 16, 64, generator=generator),
            encoder_hidden_states=torch.randn(1, 8, 32, generator=generator),
            pooled_projections=torch.randn(1, 32, generator=generator),
            timestep=torch.tensor([0.5]),
            guidance=torch.tensor([3.5]),
            img_ids=torch.zeros(16, 3),
            txt_ids=torch.zeros(8, 3),
            return_dict=False,
        )[0]


def attached(base: Base, *uses: LoraUse) -> Any:
    pipeline = image_pipeline(
        base, load_transformer(base, FP32, torch.float32, "cpu"), load_vae(base, torch.float32, "cpu")
    )
    apply_to_transformer(pipeline, [open_lora(use, base) for use in uses])
    return pipeline.transformer


def test_two_loras_act_together_as_in_the_stock_pipeline(
    base: Base, stock: Stock, write: Callable[..., Path], tensors: dict[str, torch.Tensor]
) -> None:
    first = write(tensors)
    second = write(lora_tensors(stock(), 2), "style.safetensors")
    ours = velocity(attached(base, LoraUse(first, 0.5), LoraUse(second, -0.25)))
    pipeline = stock()
    pipeline.load_lora_weights(first, adapter_name="mug")
    pipeline.load_lora_weights(second, adapter_name="style")
    pipeline.set_adapters(["mug", "style"], [0.5, -0.25])
    assert torch.equal(ours, velocity(pipeline.transformer))


def test_alpha_in_the_file_counts_as_in_the_stock_pipeline(
    base: Base, stock: Stock, write: Callable[..., Path], tensors: dict[str, torch.Tensor]
) -> None:
    path = write({**tensors, **{f"transformer.{layer}.alpha": torch.tensor(1.0) for layer in LAYERS}})
    pipeline = stock()
    pipeline.load_lora_weights(path)
    ours = velocity(attached(base, LoraUse(path)))
    assert torch.equal(ours, velocity(pipeline.transformer))
    assert not torch.equal(ours, velocity(attached(base, LoraUse(write(tensors, "plain.safetensors")))))


def test_a_lora_on_the_text_encoder_acts_as_in_the_stock_pipeline(
    base: Base, stock: Stock, write: Callable[..., Path], tensors: dict[str, torch.Tensor]
) -> None:
    generator = torch.Generator().manual_seed(5)
    pair = {f"{TEXT_LAYER}.lora_{half}.weight": torch.randn(4, 32, generator=generator) for half in "AB"}
    pair[f"{TEXT_LAYER}.lora_B.weight"] = pair[f"{TEXT_LAYER}.lora_B.weight"].T.contiguous()
    path = write({**tensors, **pair})
    text = load_text_pipeline(base, FP32, torch.float32, "cpu")
    _, plain, _ = text.encode_prompt(PROMPT, max_sequence_length=8)
    apply_to_text_encoder(text, [open_lora(LoraUse(path, 0.5), base)])
    _, ours, _ = text.encode_prompt(PROMPT, max_sequence_length=8)
    pipeline = stock()
    pipeline.load_lora_weights(path, adapter_name="mug")
    pipeline.set_adapters(["mug"], [0.5])
    _, theirs, _ = pipeline.encode_prompt(PROMPT, max_sequence_length=8)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, plain)


def test_a_text_encoder_layer_that_does_not_exist_is_refused(
    base: Base, write: Callable[..., Path], tensors: dict[str, torch.Tensor]
) -> None:
    layers = (TEXT_LAYER, TEXT_LAYER.replace("layers.0", "layers.9"))
    pairs = {f"{layer}.lora_{half}.weight": torch.ones(32, 32) for layer in layers for half in "AB"}
    with pytest.raises(BaseModelError, match=r"there is no layer text_encoder\.text_model\.encoder\.layers\.9"):
        open_lora(LoraUse(write({**tensors, **pairs})), base)


@pytest.mark.parametrize(
    "key",
    [
        "transformer.transformer_blocks.0.norm1.linear.diff",
        "transformer.transformer_blocks.0.attn.norm_q.weight",
        "transformer.transformer_blocks.0.attn.to_q.lora_B.bias",
        "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight",
    ],
)
def test_tensors_that_would_be_ignored_are_listed(
    base: Base, write: Callable[..., Path], tensors: dict[str, torch.Tensor], key: str
) -> None:
    with pytest.raises(BaseModelError, match="are no part of a LoRA") as error:
        open_lora(LoraUse(write({**tensors, key: torch.ones(4, 4)})), base)
    assert key in error.value.message


def test_a_layer_of_another_width_tells_that_the_lora_is_for_another_model(
    base: Base, write: Callable[..., Path], tensors: dict[str, torch.Tensor]
) -> None:
    wide = {**tensors, f"transformer.{LAYERS[0]}.lora_A.weight": torch.ones(4, 3072)}
    with pytest.raises(BaseModelError, match="does not fit") as error:
        open_lora(LoraUse(write(wide, ss_sd_model_name="black-forest-labs/FLUX.1-dev")), base)
    assert f"{LAYERS[0]} is [64, 3072], and the model's [64, 64]" in error.value.message
    assert "--base black-forest-labs/FLUX.1-dev" in (error.value.hint or "")


def test_a_layer_that_the_model_lacks_is_named(
    base: Base, write: Callable[..., Path], tensors: dict[str, torch.Tensor]
) -> None:
    deep = {key.replace("blocks.0", "blocks.18"): tensor for key, tensor in tensors.items()}
    with pytest.raises(BaseModelError, match=r"there is no layer transformer_blocks\.18\.attn\.to_q"):
        open_lora(LoraUse(write(deep)), base)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("modelspec.architecture", "stable-diffusion-xl-v1-base/lora"),
        ("modelspec.architecture", "flux-2-dev/lora"),
        ("ss_base_model_version", "sdxl_base_v1-0"),
    ],
)
def test_a_lora_of_another_family_is_refused_by_its_header(
    base: Base, write: Callable[..., Path], tensors: dict[str, torch.Tensor], key: str, value: str
) -> None:
    with pytest.raises(BaseModelError, match=f"this LoRA is for {value}"):
        open_lora(LoraUse(write(tensors, **{key: value})), base)


@pytest.mark.parametrize("value", ["flux-1-dev/lora", "Flux.1-dev/lora", "flux-1-schnell/lora"])
def test_a_lora_of_the_same_family_is_taken(
    base: Base, write: Callable[..., Path], tensors: dict[str, torch.Tensor], value: str
) -> None:
    assert open_lora(LoraUse(write(tensors, **{"modelspec.architecture": value})), base).name == "mug"


def test_a_safetensors_file_without_a_lora_is_refused(base: Base, write: Callable[..., Path]) -> None:
    with pytest.raises(BaseModelError, match=r"1 of 1 tensors are no part of a LoRA of this family: decoder\.weight"):
        open_lora(LoraUse(write({"decoder.weight": torch.ones(4, 4)})), base)


@pytest.mark.parametrize(
    ("key", "family"),
    [
        ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", "Stable Diffusion or SDXL"),
        ("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj", "FLUX.2"),
    ],
)
def test_a_lora_of_another_family_is_refused_by_its_keys(
    base: Base, write: Callable[..., Path], key: str, family: str
) -> None:
    pair = {f"{key}.lora_{half}.weight": torch.ones(4, 4) for half in ("down", "up")}
    with pytest.raises(BaseModelError, match=f"named as in {family}") as error:
        open_lora(LoraUse(write(pair)), base)
    assert error.value.exit_code == ExitCode.BASE_MODEL


def test_a_pickle_is_refused_with_the_reason(base: Base, tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "mug.pt"
    torch.save(tensors, path)
    with pytest.raises(UsageError, match="can run code"):
        open_lora(LoraUse(path), base)


def test_a_missing_file_and_a_damaged_one_are_told_apart(
    base: Base, write: Callable[..., Path], tensors: dict[str, torch.Tensor]
) -> None:
    path = write(tensors)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StorageError, match="the file is cut off"):
        open_lora(LoraUse(path), base)
    with pytest.raises(UsageError, match="no such LoRA file"):
        open_lora(LoraUse(path.with_name("cup.safetensors")), base)


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("nano", "nano"),
        ("black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-dev"),
        ("flux1-dev.safetensors", None),
        ("", None),
    ],
)
def test_the_base_that_a_lora_names_is_found_where_it_can_be_had(
    write: Callable[..., Path], tensors: dict[str, torch.Tensor], named: str, found: str | None
) -> None:
    assert base_of(write(tensors, ss_sd_model_name=named)) == found
