from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import nn

from fluxtune.config.memory import MemoryConfig
from fluxtune.config.model import ModelConfig
from fluxtune.errors import BaseModelError, ExitCode, UsageError
from fluxtune.events import Event, Progress
from fluxtune.flux import weights as weights_module
from fluxtune.flux.base import Base, open_base
from fluxtune.flux.denoise import encode_prompt
from fluxtune.flux.load import load_text_pipeline, load_transformer, load_vae, streamed_blocks
from fluxtune.flux.weights import DTYPES
from fluxtune.memory.eight_bit import FrozenLinear8bit
from fluxtune.memory.quantize import QUANTIZATIONS
from fluxtune.memory.row_wise import RowQuantizedLinear

Weights = dict[str, torch.Tensor]
FP32 = MemoryConfig(base_precision="fp32", text_precision="fp32")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
QUERY = "transformer_blocks.0.attn.to_q.weight"


def opened(folder: Path) -> Base:
    return open_base(ModelConfig(base=str(folder)))


def loaded(folder: Path, precision: str = "fp32", dtype: torch.dtype = torch.float32) -> nn.Module:
    memory = MemoryConfig(base_precision=precision)  # type: ignore[arg-type]
    model = load_transformer(opened(folder), memory, dtype, "cpu")
    assert isinstance(model, nn.Module)
    return model


def rewrite(folder: Path, change: Callable[[Weights], object]) -> None:
    """Change the transformer's weights on disk."""
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def assert_same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    assert set(ours.state_dict()) == set(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
        assert ours.state_dict()[name].dtype == tensor.dtype, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_streamed_transformer_equals_from_pretrained_to_the_bit(tiny_flux: Path, dtype: torch.dtype) -> None:
    ours = loaded(tiny_flux, "fp32" if dtype == torch.float32 else "bf16", dtype)
    assert_same_weights(ours, FluxTransformer2DModel.from_pretrained(tiny_flux / "transformer", torch_dtype=dtype))


def test_sharded_weights_load_the_same(tiny_flux: Path, own_copy: Path) -> None:
    whole = FluxTransformer2DModel.from_pretrained(tiny_flux / "transformer")
    (own_copy / WEIGHTS).unlink()
    whole.save_pretrained(own_copy / "transformer", max_shard_size="300KB")
    assert len(list((own_copy / "transformer").glob("*-of-*.safetensors"))) > 2
    assert_same_weights(loaded(own_copy), whole)


def test_a_variant_beside_the_weights_is_left_alone(tiny_flux: Path, own_copy: Path) -> None:
    whole = FluxTransformer2DModel.from_pretrained(tiny_flux / "transformer")
    whole.half().save_pretrained(own_copy / "transformer", variant="fp16")
    assert_same_weights(loaded(own_copy), FluxTransformer2DModel.from_pretrained(tiny_flux / "transformer"))


def test_nothing_of_the_loaded_transformer_is_trained(tiny_flux: Path) -> None:
    assert not any(parameter.requires_grad for parameter in loaded(tiny_flux, "nf4").parameters())


def test_a_missing_tensor_is_named(own_copy: Path) -> None:
    rewrite(own_copy, lambda weights: weights.pop(QUERY))
    with pytest.raises(BaseModelError, match=f"1 tensors are missing, the first is {QUERY}"):
        loaded(own_copy)


def test_a_tensor_that_the_model_lacks_is_named(own_copy: Path) -> None:
    rewrite(own_copy, lambda weights: weights.update({"transformer_blocks.9.oops.weight": torch.zeros(2)}))
    with pytest.raises(BaseModelError, match=r"unexpected tensor transformer_blocks\.9\.oops\.weight"):
        loaded(own_copy)


@pytest.mark.parametrize("name", [QUERY, "transformer_blocks.0.attn.to_q.bias"])
@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_a_tensor_of_another_shape_is_named(own_copy: Path, name: str, precision: str) -> None:
    rewrite(own_copy, lambda weights: weights.update({name: torch.zeros(3, 3)}))
    with pytest.raises(BaseModelError, match=rf"{name} is \[3, 3\], should be \[64"):
        loaded(own_copy, precision)


def test_weights_that_were_cut_off_are_told_so(own_copy: Path) -> None:
    content = (own_copy / WEIGHTS).read_bytes()
    (own_copy / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(BaseModelError, match="the file is cut off") as error:
        loaded(own_copy)
    assert error.value.where == str(own_copy / WEIGHTS)
    assert error.value.exit_code == ExitCode.BASE_MODEL


@pytest.mark.parametrize(
    ("part", "load"),
    [
        ("vae", lambda base: load_vae(base, torch.float32, "cpu")),
        ("text_encoder", lambda base: load_text_pipeline(base, FP32, torch.float32, "cpu")),
        ("text_encoder_2", lambda base: load_text_pipeline(base, FP32, torch.float32, "cpu")),
    ],
)
def test_a_part_that_was_cut_off_is_told_so(own_copy: Path, part: str, load: Callable[[Base], object]) -> None:
    (weights,) = (own_copy / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(BaseModelError, match="the file is cut off"):
        load(opened(own_copy))


def test_pickled_weights_are_not_read(own_copy: Path) -> None:
    base = opened(own_copy)
    (own_copy / WEIGHTS).rename(own_copy / "transformer" / "diffusion_pytorch_model.bin")
    with pytest.raises(BaseModelError, match=r"no \.safetensors weights"):
        load_transformer(base, FP32, torch.float32, "cpu")


def test_a_shard_that_went_missing_is_named(own_copy: Path) -> None:
    index = {"weight_map": {QUERY: "diffusion_pytorch_model-00001-of-00001.safetensors"}}
    base = opened(own_copy)
    (own_copy / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(BaseModelError, match="the file is missing") as error:
        load_transformer(base, FP32, torch.float32, "cpu")
    assert "00001-of-00001" in str(error.value.where)


def test_a_pipeline_of_another_kind_is_refused_by_its_name(own_copy: Path) -> None:
    index = own_copy / "model_index.json"
    index.write_text(index.read_text().replace("FluxPipeline", "StableDiffusion3Pipeline"))
    with pytest.raises(BaseModelError, match="a StableDiffusion3Pipeline model; fluxtune trains FluxPipeline"):
        opened(own_copy)


def test_a_tokenizer_without_a_length_is_called_incomplete(own_copy: Path) -> None:
    file = own_copy / "tokenizer_2" / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["model_max_length"]
    file.write_text(json.dumps(settings))
    with pytest.raises(BaseModelError, match="model_max_length is missing"):
        opened(own_copy)


def test_the_text_length_is_what_the_tokenizer_says_up_to_the_familys(base: Base, own_copy: Path) -> None:
    file = own_copy / "tokenizer_2" / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    assert base.text_tokens == settings["model_max_length"]
    file.write_text(json.dumps({**settings, "model_max_length": 10**30}))
    assert opened(own_copy).text_tokens == 512


@pytest.mark.parametrize(
    ("precision", "kind"), [("int8", FrozenLinear8bit), ("fp8", RowQuantizedLinear), ("nf4", bnb.nn.Linear4bit)]
)
def test_the_blocks_linear_layers_are_quantised_and_no_others(
    tiny_flux: Path, precision: str, kind: type[nn.Module]
) -> None:
    for name, module in loaded(tiny_flux, precision).named_modules():
        if isinstance(module, nn.Linear):
            in_block = name.startswith(("transformer_blocks.", "single_transformer_blocks."))
            assert isinstance(module, kind if in_block else nn.Linear), name
            assert (type(module) is nn.Linear) != in_block, name


@pytest.mark.parametrize("precision", QUANTIZATIONS)
def test_a_quantised_transformer_answers_nearly_as_the_whole_one(tiny_flux: Path, precision: str) -> None:
    whole, quantised = loaded(tiny_flux), loaded(tiny_flux, precision)
    family = opened(tiny_flux).family
    generator = torch.Generator().manual_seed(3)
    noisy = torch.randn(1, 64, 4, 4, generator=generator)
    text = {
        "prompt_embeds": torch.randn(1, 6, 32, generator=generator),
        "pooled_prompt_embeds": torch.randn(1, 32, generator=generator),
    }
    with torch.no_grad():
        expected, seen = (family.forward(model, noisy, torch.tensor([0.4]), text, 1.0) for model in (whole, quantised))
    difference = float((seen - expected).norm() / expected.norm())
    assert 0 < difference < {"int8": 0.03, "int8-weights": 0.03, "fp8": 0.06, "nf4": 0.2}[precision]


@pytest.mark.parametrize(("held", "weights"), [("fp32", torch.float32), ("bf16", torch.bfloat16)], ids=["fp32", "bf16"])
def test_the_text_encoders_are_held_as_asked(base: Base, held: str, weights: torch.dtype) -> None:
    memory = MemoryConfig(text_precision=held)  # type: ignore[arg-type]
    pipeline = load_text_pipeline(base, memory, torch.bfloat16, "cpu")
    assert {pipeline.text_encoder.dtype, pipeline.text_encoder_2.dtype} == {weights}


@pytest.mark.parametrize("held", ["fp32", "bf16"])
def test_the_streamed_text_encoders_and_vae_equal_from_pretrained_to_the_bit(tiny_flux: Path, held: str) -> None:
    dtype, base = DTYPES[held], opened(tiny_flux)
    pipeline = load_text_pipeline(base, MemoryConfig(text_precision=held), dtype, "cpu")  # type: ignore[arg-type]
    theirs = FluxPipeline.from_pretrained(tiny_flux, transformer=None, torch_dtype=dtype)
    assert_same_weights(pipeline.text_encoder, theirs.text_encoder)
    assert_same_weights(pipeline.text_encoder_2, theirs.text_encoder_2)
    assert pipeline.text_encoder_2.encoder.embed_tokens.weight is pipeline.text_encoder_2.shared.weight
    assert_same_weights(load_vae(base, dtype, "cpu"), theirs.vae)


def test_all_that_a_text_encoder_computes_with_is_on_the_device(base: Base) -> None:
    pipeline = load_text_pipeline(base, MemoryConfig(text_precision="bf16"), torch.bfloat16, "meta")
    for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
        assert {tensor.device.type for tensor in (*encoder.parameters(), *encoder.buffers())} == {"meta"}


def test_projections_of_t5_beyond_the_range_of_float16_are_not_held_in_8_bits(base: Base) -> None:
    pipeline = load_text_pipeline(base, MemoryConfig(text_precision="int8"), torch.bfloat16, "cpu")
    for name, module in pipeline.text_encoder_2.named_modules():
        if isinstance(module, nn.Linear):
            assert type(module) is (nn.Linear if name.endswith(".wo") else FrozenLinear8bit), name


def test_loading_tells_its_progress_in_bytes_up_to_all_of_them(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "_REPORT_SECONDS", 0.0)
    events: list[Event] = []
    load_transformer(base, FP32, torch.float32, "cpu", events.append)
    seen = [event for event in events if isinstance(event, Progress)]
    size = sum(each.nbytes for each in load_file(base.folder / WEIGHTS).values())
    assert {(event.task, event.total, event.unit) for event in seen} == {("load transformer", size, "B")}
    assert [event.done for event in seen] == sorted({event.done for event in seen})
    assert seen[-1].done == size
    assert all(event.rate and event.seconds_left is not None for event in seen)


@pytest.mark.parametrize("held", QUANTIZATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_quantised_text_encoder_reads_nearly_as_the_whole_one(base: Base, held: str, dtype: torch.dtype) -> None:
    memory = MemoryConfig(text_precision=held)  # type: ignore[arg-type]
    pipeline = load_text_pipeline(base, memory, dtype, "cpu")
    kinds = bnb.nn.Linear4bit | bnb.nn.Linear8bitLt | RowQuantizedLinear
    assert any(isinstance(module, kinds) for module in pipeline.text_encoder_2.modules())
    expected = encode_prompt(base, load_text_pipeline(base, FP32, torch.float32, "cpu"), "a red star")
    seen = encode_prompt(base, pipeline, "a red star")
    difference = (seen["prompt_embeds"].float() - expected["prompt_embeds"]).norm() / expected["prompt_embeds"].norm()
    assert float(difference) < {"int8": 0.05, "int8-weights": 0.05, "fp8": 0.08, "nf4": 0.2}[held]


def test_a_fingerprint_changes_with_the_content_of_its_parts_alone(own_copy: Path) -> None:
    base = opened(own_copy)
    vae, text = base.fingerprint("vae"), base.fingerprint("text_encoder", "tokenizer")
    file = own_copy / "tokenizer" / "tokenizer_config.json"
    file.write_text(file.read_text() + " ")
    assert base.fingerprint("vae") == vae
    assert base.fingerprint("text_encoder", "tokenizer") != text


@pytest.mark.parametrize("precision", ["fp32", "int8", "nf4"])
def test_a_transformer_with_streamed_blocks_answers_the_same_to_the_bit(tiny_flux: Path, precision: str) -> None:
    plain = loaded(tiny_flux, precision)
    memory = MemoryConfig(base_precision=precision, streamed_blocks=4)  # type: ignore[arg-type]
    streamed = load_transformer(opened(tiny_flux), memory, torch.float32, "cpu")
    family = opened(tiny_flux).family
    noisy = torch.randn(1, 64, 4, 4)
    text = {"prompt_embeds": torch.randn(1, 8, 32), "pooled_prompt_embeds": torch.randn(1, 32)}
    with torch.no_grad():
        expected, seen = (family.forward(each, noisy, torch.tensor([0.4]), text, 3.5) for each in (plain, streamed))
    assert torch.equal(seen, expected)


def test_blocks_of_both_kinds_are_streamed_in_the_order_of_the_forward(tiny_flux: Path) -> None:
    family = opened(tiny_flux).family
    model = loaded(tiny_flux)
    assert streamed_blocks(model, family, 2) == ["transformer_blocks.1", "single_transformer_blocks.1"]
    assert streamed_blocks(model, family, 0) == []
    with pytest.raises(UsageError, match="5 blocks shall be streamed, and the base model has 4"):
        streamed_blocks(model, family, 5)
