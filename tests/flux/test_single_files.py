from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from comfy_files import (
    Weights,
    bfl_transformer,
    bfl_vae,
    comfy_parts,
    in_fp8,
    scaled_fp8,
    weights_of,
    write,
)
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_ldm_vae_checkpoint,
)
from safetensors.torch import save_file
from torch import nn

from fluxtune.config.memory import MemoryConfig
from fluxtune.config.model import ModelConfig
from fluxtune.errors import BaseModelError, ExitCode
from fluxtune.flux.base import Base, open_base
from fluxtune.flux.denoise import encode_prompt
from fluxtune.flux.flux1_names import NAMES
from fluxtune.flux.load import load_text_pipeline, load_transformer, load_vae
from fluxtune.flux.single_files import stream
from fluxtune.nano import model_folder

NANO = model_folder()
FP32 = MemoryConfig(base_precision="fp32", text_precision="fp32")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
QKV = "double_blocks.0.img_attn.qkv"


@pytest.fixture(scope="session")
def parts() -> dict[str, Weights]:
    """Nano's parts as ComfyUI's files name them."""
    return comfy_parts(NANO)


def opened(base: Path | str = NANO, **files: Path) -> Base:
    return open_base(ModelConfig(base=str(base), **{part: str(file) for part, file in files.items()}))


def transformer_of(base: Base, precision: str = "fp32", dtype: torch.dtype = torch.float32) -> nn.Module:
    model = load_transformer(base, MemoryConfig(base_precision=precision), dtype, "cpu")  # type: ignore[arg-type]
    assert isinstance(model, nn.Module)
    return model


def velocity(base: Base, model: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    text = {"prompt_embeds": torch.randn(1, 16, 128, generator=generator)}
    text["pooled_prompt_embeds"] = torch.randn(1, 64, generator=generator)
    with torch.no_grad():
        return base.family.forward(model, torch.randn(1, 64, 4, 4, generator=generator), torch.tensor([0.4]), text, 1.0)


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    expected, seen = theirs.state_dict(), ours.state_dict()
    assert set(seen) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(seen[name], tensor), name


def folder_with(tmp_path: Path, transformer: Weights) -> Path:
    """A copy of nano's folder with these weights by diffusers' names."""
    folder = Path(shutil.copytree(NANO, tmp_path / "folder"))
    save_file(transformer, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_a_transformer_of_a_single_file_computes_what_the_folders_does(
    parts: dict[str, Weights], tmp_path: Path, prefix: str
) -> None:
    base = opened(transformer=write(tmp_path / "flux.safetensors", parts["transformer"], prefix))
    ours, theirs = transformer_of(base), transformer_of(opened())
    assert_same(ours, theirs)
    assert torch.equal(velocity(base, ours), velocity(base, theirs))


def test_a_transformer_in_fp8_computes_what_a_folder_of_the_rounded_weights_does(tmp_path: Path) -> None:
    rounded = in_fp8(weights_of(NANO, "transformer"))
    base = opened(transformer=write(tmp_path / "flux.safetensors", bfl_transformer(rounded)))
    folder = opened(folder_with(tmp_path, {name: tensor.to(torch.bfloat16) for name, tensor in rounded.items()}))
    ours, theirs = transformer_of(base), transformer_of(folder)
    assert_same(ours, theirs)
    assert torch.equal(velocity(base, ours), velocity(base, theirs))
    assert not torch.equal(velocity(base, ours), velocity(base, transformer_of(opened())))


@pytest.mark.parametrize("leaf", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("by_row", [False, True], ids=["one scale", "one a row"])
def test_scaled_fp8_is_multiplied_by_its_scales(
    parts: dict[str, Weights], tmp_path: Path, leaf: str, by_row: bool
) -> None:
    stored, worth = scaled_fp8(parts["transformer"], leaf, by_row)
    base = opened(transformer=write(tmp_path / "scaled.safetensors", stored, "model.diffusion_model."))
    plain = opened(transformer=write(tmp_path / "plain.safetensors", worth))
    ours, theirs = transformer_of(base), transformer_of(plain)
    assert_same(ours, theirs)
    whole = velocity(base, transformer_of(opened()))
    assert (velocity(base, ours) - whole).norm() / whole.norm() < 0.1


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_a_single_file_is_quantised_as_the_folder_is(parts: dict[str, Weights], tmp_path: Path, precision: str) -> None:
    base = opened(transformer=write(tmp_path / "flux.safetensors", parts["transformer"]))
    ours, theirs = (transformer_of(each, precision, torch.bfloat16) for each in (base, opened()))
    noisy = torch.randn(1, 64, 4, 4, dtype=torch.bfloat16)
    text = {"prompt_embeds": torch.randn(1, 16, 128), "pooled_prompt_embeds": torch.randn(1, 64)}
    with torch.no_grad():
        seen, expected = (base.family.forward(each, noisy, torch.tensor([0.4]), text, 1.0) for each in (ours, theirs))
    assert torch.equal(seen, expected)


def test_vae_and_text_encoders_of_single_files_are_the_folders(parts: dict[str, Weights], tmp_path: Path) -> None:
    files = {part: write(tmp_path / f"{part}.safetensors", parts[part]) for part in parts if part != "transformer"}
    base, folder = opened(**files), opened()
    assert_same(load_vae(base, torch.float32, "cpu"), load_vae(folder, torch.float32, "cpu"))
    ours, theirs = (load_text_pipeline(each, FP32, torch.float32, "cpu") for each in (base, folder))
    seen, expected = (encode_prompt(folder, each, "a red star") for each in (ours, theirs))
    assert all(torch.equal(seen[name], expected[name]) for name in expected)


@pytest.mark.parametrize("held", ["fp16", "fp8", "scaled fp8"])
def test_a_t5_in_few_bits_reads_nearly_as_the_whole_one(parts: dict[str, Weights], tmp_path: Path, held: str) -> None:
    t5 = parts["text_encoder_2"]
    stored = {"fp16": {name: each.half() for name, each in t5.items()}, "fp8": in_fp8(t5)}
    stored["scaled fp8"] = {**scaled_fp8(t5)[0], "spiece_model": torch.zeros(9, dtype=torch.uint8)}
    base, folder = opened(text_encoder_2=write(tmp_path / "t5xxl.safetensors", stored[held])), opened()
    ours, theirs = (load_text_pipeline(each, FP32, torch.float32, "cpu") for each in (base, folder))
    seen, expected = (encode_prompt(folder, each, "a red star")["prompt_embeds"] for each in (ours, theirs))
    assert (seen - expected).norm() / expected.norm() < {"fp16": 1e-3, "fp8": 0.2, "scaled fp8": 0.2}[held]


def test_one_checkpoint_may_hold_all_parts(parts: dict[str, Weights], tmp_path: Path) -> None:
    prefixes = {
        "transformer": "model.diffusion_model.",
        "vae": "vae.",
        "text_encoder": "text_encoders.clip_l.transformer.",
        "text_encoder_2": "text_encoders.t5xxl.transformer.",
    }
    whole = {f"{prefix}{name}": tensor for part, prefix in prefixes.items() for name, tensor in parts[part].items()}
    file = write(tmp_path / "checkpoint.safetensors", whole)
    base, folder = opened(**dict.fromkeys(parts, file)), opened()
    assert_same(transformer_of(base), transformer_of(folder))
    assert_same(load_vae(base, torch.float32, "cpu"), load_vae(folder, torch.float32, "cpu"))
    ours, theirs = (load_text_pipeline(each, FP32, torch.float32, "cpu") for each in (base, folder))
    assert_same(ours.text_encoder, theirs.text_encoder)
    assert_same(ours.text_encoder_2, theirs.text_encoder_2)


def test_a_single_file_in_diffusers_own_names_is_read_too(tmp_path: Path) -> None:
    base = opened(transformer=write(tmp_path / "flux.safetensors", weights_of(NANO, "transformer")))
    assert_same(transformer_of(base), transformer_of(opened()))


def test_diffusers_converts_the_transformer_to_the_same_names(tmp_path: Path) -> None:
    # Its converter knows the width of FLUX.1 alone; a column of each matrix shows where the rows go.
    width = 3072
    shapes = {name: [1, 1] if tensor.ndim == 2 else [1] for name, tensor in weights_of(NANO, "transformer").items()}
    rows = {"proj_mlp": 4 * width, "norm_out.linear": 2 * width}
    theirs = {
        name: torch.randn(next((each for part, each in rows.items() if part in name), width), *shape[1:])
        for name, shape in shapes.items()
    }
    bfl = bfl_transformer(theirs)
    ours = dict(stream([write(tmp_path / "x.safetensors", bfl)], NAMES["transformer"], _shapes(theirs)))
    converted = convert_flux_transformer_checkpoint_to_diffusers(dict(bfl))
    assert set(ours) == set(converted) == set(theirs)
    assert all(torch.equal(ours[name], converted[name]) for name in converted)  # type: ignore[arg-type]


def test_diffusers_converts_a_vae_with_attention_to_the_same_names(tmp_path: Path) -> None:
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[8, 8, 16],
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    theirs = dict(vae.state_dict())
    bfl = bfl_vae(theirs)
    ours = dict(stream([write(tmp_path / "ae.safetensors", bfl)], NAMES["vae"], _shapes(theirs)))
    converted = convert_ldm_vae_checkpoint(dict(bfl), vae.config)
    assert set(ours) == set(converted) == set(theirs)
    assert all(torch.equal(ours[name], converted[name]) for name in converted)  # type: ignore[arg-type]


def _shapes(weights: Weights) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items()}


def test_weights_that_a_file_stands_in_for_need_not_be_there(parts: dict[str, Weights], tmp_path: Path) -> None:
    small = Path(shutil.copytree(NANO, tmp_path / "small", ignore=shutil.ignore_patterns("*.safetensors")))
    files = {part: write(tmp_path / f"{part}.safetensors", weights) for part, weights in parts.items()}
    base = opened(small, **files)
    assert_same(transformer_of(base), transformer_of(opened()))
    with pytest.raises(BaseModelError, match=r"missing: vae/diffusion_pytorch_model\.safetensors"):
        opened(small, **{part: file for part, file in files.items() if part != "vae"})


def test_a_fingerprint_is_that_of_the_named_file(parts: dict[str, Weights], tmp_path: Path) -> None:
    file = write(tmp_path / "ae.safetensors", parts["vae"])
    before, folder = opened(vae=file), opened()
    assert before.fingerprint("transformer") == folder.fingerprint("transformer")
    first = before.fingerprint("vae")
    assert first != folder.fingerprint("vae")
    changed = dict(parts["vae"])
    changed["decoder.conv_in.bias"] = changed["decoder.conv_in.bias"] + 1
    write(file, changed)
    assert opened(vae=file).fingerprint("vae") != first


def refused(file: Path, part: str = "transformer") -> BaseModelError:
    with pytest.raises(BaseModelError) as caught:
        opened(**{part: file})
    assert caught.value.exit_code == ExitCode.BASE_MODEL
    assert caught.value.where == str(file)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda each: each.pop(f"{QKV}.bias"),
            "3 tensors are missing, the first is transformer_blocks.0.attn.to_q.bias",
        ),
        (lambda each: each.update({"double_blocks.9.oops.weight": torch.ones(2)}), "unexpected tensor double_blocks.9"),
        (lambda each: each.update({f"{QKV}.weight": torch.ones(5, 144)}), f"{QKV}.weight has 5 rows, should have 432"),
        (lambda each: each.update({f"{QKV}.weight": torch.ones(432, 7)}), r"is \[144, 7\], should be \[144, 144\]"),
        (lambda each: each.update({"img_in.weight": torch.ones(144, 384)}), r"x_embedder.weight is \[144, 384\]"),
        (lambda each: each.update({"img_in.weight": torch.ones(9, dtype=torch.uint8)}), "packed in torch.uint8"),
        (
            lambda each: each.update({"img_in.scale_weight": torch.ones(3, 5)}),
            r"img_in has scales \[3, 5\]: wanted one, or one for each row",
        ),
    ],
    ids=["missing", "unexpected", "rows", "columns", "another model", "packed", "scales"],
)
def test_a_wrong_tensor_is_named_before_anything_loads(
    parts: dict[str, Weights], tmp_path: Path, change: Callable[[Weights], object], message: str
) -> None:
    weights = dict(parts["transformer"])
    change(weights)
    file = write(tmp_path / "flux.safetensors", weights)
    with pytest.raises(BaseModelError, match=message):
        opened(transformer=file)
    refused(file)


def test_a_transformer_without_guidance_names_the_other_base(parts: dict[str, Weights], tmp_path: Path) -> None:
    schnell = {name: each for name, each in parts["transformer"].items() if not name.startswith("guidance_in")}
    error = refused(write(tmp_path / "flux1-schnell.safetensors", schnell))
    assert "guidance_embedder" in error.message
    assert "schnell" in (error.hint or "")


@pytest.mark.parametrize(
    ("names", "message", "hint"),
    [
        (["lora_unet_double_blocks_0_img_attn_proj.lora_down.weight"], "but a LoRA", "lora.init_from"),
        (["transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"], "but a LoRA", "lora.init_from"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "Stable Diffusion (1.5, 2 or XL)", "name FLUX.1's"),
        (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "Stable Diffusion 3", "name FLUX.1's"),
        (["double_blocks.0.img_attn.qkv.weight", "double_stream_modulation_img.lin.weight"], "FLUX.2", "name FLUX.1's"),
        (["a", "b", "c", "d"], "something else: it has a, b, c and 1 more", "single_blocks.0.modulation.lin.weight"),
    ],
)
def test_another_kind_of_file_is_told_for_what_it_is(tmp_path: Path, names: list[str], message: str, hint: str) -> None:
    error = refused(write(tmp_path / "x.safetensors", {name: torch.ones(2, 2) for name in names}))
    assert error.message.startswith("this is not FLUX.1's transformer but ")
    assert message in error.message
    assert hint in (error.hint or "")


@pytest.mark.parametrize("given", ["transformer", "vae", "text_encoder", "text_encoder_2"])
@pytest.mark.parametrize("named", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_a_part_that_was_named_as_another_is_told_where_it_belongs(
    parts: dict[str, Weights], tmp_path: Path, given: str, named: str
) -> None:
    file = write(tmp_path / "x.safetensors", parts[given])
    if given == named:
        assert opened(**{named: file}).files == {named: file}
    else:
        assert refused(file, named).hint == f"name it as model.{given}"


@pytest.mark.parametrize("name", ["flux1-dev-Q4.gguf", "folder", "nothing.safetensors", "damaged.safetensors"])
def test_what_is_no_whole_safetensors_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "flux1-dev-Q4.gguf").write_bytes(b"GGUF")
    (tmp_path / "damaged.safetensors").write_bytes(b"12345678901234567890")
    error = refused(tmp_path / name)
    wanted = {
        "flux1-dev-Q4": "a GGUF file, and no safetensors",
        "folder": "this is a folder: model.transformer takes a .safetensors file",
        "nothing": "there is no such file",
        "damaged": "no safetensors file, or its first bytes are damaged",
    }
    assert wanted[name.partition(".")[0]] in error.message
