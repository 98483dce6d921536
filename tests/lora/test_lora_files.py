from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from lora_factory import FACTS, trained
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fluxtune.config.lora import LoraConfig
from fluxtune.errors import BaseModelError, ExitCode, UsageError, VerificationError
from fluxtune.files import sha256_of
from fluxtune.flux.families import FLUX1
from fluxtune.lora.adapter import LoraLayer, attach, start_from
from fluxtune.lora.files import read_metadata, verify_lora, write_lora
from fluxtune.lora.reading import read_start

Velocity = Callable[[Any], torch.Tensor]
Fresh = Callable[[], Any]
Layers = dict[str, LoraLayer]


@pytest.fixture
def layers(transformer: Any) -> Layers:
    """A trained adapter whose scale is 3/4, on a transformer of its own."""
    return trained(transformer, alpha=3.0)


def change(layer: LoraLayer) -> torch.Tensor:
    return layer.scale * layer.b.float() @ layer.a.float()


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_a_written_lora_reads_back_as_the_same_change(
    layers: Layers, tmp_path: Path, dtype: torch.dtype, near: float
) -> None:
    path = tmp_path / "mug.safetensors"
    assert write_lora(path, layers, dtype, FACTS) == sha256_of(path)
    stored = read_start(path)
    assert set(stored) == set(layers)
    for name, layer in layers.items():
        assert (change(stored[name]) - change(layer)).norm() <= near * change(layer).norm()


def test_the_file_holds_peft_keys_with_the_scale_in_b_and_no_alpha(layers: Layers, tmp_path: Path) -> None:
    write_lora(tmp_path / "mug.safetensors", layers, torch.float32, FACTS)
    tensors = load_file(tmp_path / "mug.safetensors")
    expected = {f"transformer.{name}.lora_{half}.weight" for name in layers for half in "AB"}
    assert set(tensors) == expected
    for name, layer in layers.items():
        assert torch.equal(tensors[f"transformer.{name}.lora_A.weight"], layer.a)
        assert torch.equal(tensors[f"transformer.{name}.lora_B.weight"], layer.b * 0.75)
    with safe_open(tmp_path / "mug.safetensors", framework="pt") as file:
        assert "lora_adapter_metadata" not in file.metadata()
    assert read_metadata(tmp_path / "mug.safetensors")["modelspec.title"] == FACTS.name


def test_diffusers_loads_every_tensor_of_it_and_answers_the_same(
    layers: Layers, transformer: Any, tiny_flux: Path, tmp_path: Path, velocity: Velocity
) -> None:
    write_lora(tmp_path / "mug.safetensors", layers, torch.float32, FACTS)
    pipeline = FluxPipeline.from_pretrained(tiny_flux)
    pipeline.load_lora_weights(tmp_path / "mug.safetensors", adapter_name="mug")
    loaded = {
        f"transformer.{name.replace('.mug.', '.')}": parameter
        for name, parameter in pipeline.transformer.named_parameters()
        if ".mug." in name
    }
    stored = load_file(tmp_path / "mug.safetensors")
    assert set(loaded) == set(stored)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in stored.items())
    assert torch.allclose(velocity(pipeline.transformer), velocity(transformer), atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_finite_number_is_refused_and_nothing_is_left(
    layers: Layers, tmp_path: Path, value: float
) -> None:
    name = next(iter(layers))
    layers[name].b[0, 0] = value
    with pytest.raises(VerificationError, match=rf"1 tensors are not finite, .*{name}\.lora_B") as error:
        write_lora(tmp_path / "mug.safetensors", layers, torch.float32, FACTS)
    assert error.value.exit_code == ExitCode.VERIFICATION
    assert list(tmp_path.iterdir()) == []


def test_a_weight_beyond_the_files_precision_is_refused(layers: Layers, tmp_path: Path) -> None:
    layers[next(iter(layers))].b[0, 0] = 1e6
    with pytest.raises(VerificationError, match="not finite"):
        write_lora(tmp_path / "mug.safetensors", layers, torch.float16, FACTS)


def test_weights_too_small_for_half_precision_do_not_fail_the_check(layers: Layers, tmp_path: Path) -> None:
    for layer in layers.values():
        layer.b.mul_(1e-8)
    write_lora(tmp_path / "mug.safetensors", layers, torch.float16, FACTS)


def altered(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return path


ALTERATIONS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "missing or extra": lambda tensors: tensors.popitem(),
    "1 tensors are missing or extra": lambda tensors: tensors.update({"transformer.x.alpha": torch.ones(())}),
    "differs from what was trained": lambda tensors: next(iter(tensors.values())).mul_(1.01),
    "differs from what was trained by nan": lambda tensors: next(iter(tensors.values()))[0].fill_(torch.nan),
    "should be": lambda tensors: tensors.update({key: value[:1].clone() for key, value in tensors.items()}),
}


@pytest.mark.parametrize("message", ALTERATIONS)
def test_a_file_that_does_not_hold_what_was_trained_fails_verification(
    layers: Layers, tmp_path: Path, message: str
) -> None:
    path = tmp_path / "mug.safetensors"
    write_lora(path, layers, torch.float32, FACTS)
    with pytest.raises(VerificationError, match=message):
        verify_lora(altered(path, ALTERATIONS[message]), layers)


def unfolded(layers: Layers) -> dict[str, torch.Tensor]:
    """A file's tensors with the scale left out of B."""
    halves = {f"transformer.{name}.lora_A.weight": layer.a.clone() for name, layer in layers.items()}
    return halves | {f"transformer.{name}.lora_B.weight": layer.b.clone() for name, layer in layers.items()}


def with_alpha_tensors(layers: Layers, path: Path) -> None:
    alphas = {f"transformer.{name}.alpha": torch.tensor(3.0) for name in layers}
    save_file({**unfolded(layers), **alphas}, path)


def with_adapter_metadata(layers: Layers, path: Path) -> None:
    adapter = {"transformer.r": 4, "transformer.lora_alpha": 3.0, "transformer.use_rslora": False}
    save_file(unfolded(layers), path, metadata={"lora_adapter_metadata": json.dumps(adapter)})


def with_the_scale_in_b(layers: Layers, path: Path) -> None:
    write_lora(path, layers, torch.float32, FACTS)


@pytest.mark.parametrize("write", [with_alpha_tensors, with_adapter_metadata, with_the_scale_in_b])
@pytest.mark.parametrize("alpha", [3.0, 8.0])
def test_an_adapter_started_from_a_file_answers_as_the_one_that_wrote_it(
    layers: Layers,
    transformer: Any,
    fresh: Fresh,
    velocity: Velocity,
    tmp_path: Path,
    write: Callable[[Layers, Path], None],
    alpha: float,
) -> None:
    path = tmp_path / "mug.safetensors"
    write(layers, path)
    expected = velocity(transformer)
    transformer = fresh()
    config = LoraConfig(rank=4, alpha=alpha)
    attach(transformer, config, FLUX1, seed=9)
    start_from(transformer, read_start(path), config, FLUX1, str(path))
    assert torch.allclose(velocity(transformer), expected, atol=1e-6)


def test_a_file_of_diffusers_own_making_is_read_with_its_scale(
    layers: Layers, transformer: Any, tmp_path: Path
) -> None:
    transformer.save_lora_adapter(tmp_path, weight_name="own.safetensors")
    renamed = {f"transformer.{key}": value for key, value in load_file(tmp_path / "own.safetensors").items()}
    header = json.loads(read_metadata(tmp_path / "own.safetensors")["lora_adapter_metadata"])
    adapter = {f"transformer.{key}": value for key, value in header.items()}
    save_file(renamed, tmp_path / "mug.safetensors", metadata={"lora_adapter_metadata": json.dumps(adapter)})
    stored = read_start(tmp_path / "mug.safetensors")
    assert {layer.scale for layer in stored.values()} == {0.75}
    assert all(torch.allclose(change(stored[name]), change(layer)) for name, layer in layers.items())


def test_a_kohya_file_is_scaled_once_even_if_its_header_states_an_alpha(tmp_path: Path) -> None:
    # The conversion has sizes of the true model built in, so this is one true layer.
    down, up = torch.randn(4, 15360), torch.randn(3072, 4)
    tensors = {
        "lora_unet_single_blocks_0_linear2.lora_down.weight": down,
        "lora_unet_single_blocks_0_linear2.lora_up.weight": up,
        "lora_unet_single_blocks_0_linear2.alpha": torch.tensor(2.0),
    }
    header = {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 2.0})}
    save_file(tensors, tmp_path / "kohya.safetensors", metadata=header)
    (layer,) = read_start(tmp_path / "kohya.safetensors").values()
    probe = torch.randn(15360, 2)
    expected = 0.5 * up @ (down @ probe)
    assert torch.allclose(layer.scale * layer.b @ (layer.a @ probe), expected, rtol=1e-4, atol=1e-2)


def test_a_pickle_is_refused_unopened(tmp_path: Path) -> None:
    path = tmp_path / "mug.pt"
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(UsageError, match=r"this is a \.pt file, .* only safetensors is read"):
        read_start(path)


def test_a_pickle_under_the_right_name_is_refused_as_one(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "mug.safetensors")
    with pytest.raises(UsageError, match=r"this is a pickle, .* only safetensors is read"):
        read_start(tmp_path / "mug.safetensors")


def test_training_does_not_start_from_a_lora_whose_header_names_another_family(tmp_path: Path) -> None:
    tensors = {f"transformer.transformer_blocks.0.attn.to_q.lora_{half}.weight": torch.ones(8, 8) for half in "AB"}
    save_file(tensors, tmp_path / "mug.safetensors", {"ss_base_model_version": "sd3"})
    with pytest.raises(BaseModelError, match="is for sd3"):
        read_start(tmp_path / "mug.safetensors")


def test_a_file_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such LoRA file"):
        read_start(tmp_path / "mug.safetensors")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"unet.attn.lora_A.weight": torch.ones(4, 8)}, r"no part of a LoRA of this family: unet\.attn"),
        ({"lora_unet_oops.lora_down.weight": torch.ones(4, 8)}, "no part of a LoRA of this family"),
        ({"transformer.proj_out.lora_A.weight": torch.ones(4, 8)}, "alone, which makes no layer"),
        (
            {
                "transformer.proj_out.lora_A.weight": torch.ones(8),
                "transformer.proj_out.lora_B.weight": torch.ones(8, 4),
            },
            "made of matrices",
        ),
        (
            {
                "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(4, 8),
                "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.ones(7, 4),
                "lora_unet_double_blocks_0_img_attn_qkv.alpha": torch.tensor(4.0),
            },
            "7 rows for an input of",
        ),
    ],
)
def test_a_lora_of_another_model_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    save_file(tensors, tmp_path / "mug.safetensors")
    with pytest.raises(BaseModelError, match=message):
        read_start(tmp_path / "mug.safetensors")


def test_layers_of_a_text_encoder_are_no_start_for_training(layers: Layers, tmp_path: Path) -> None:
    name = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    pair = {f"{name}.lora_A.weight": torch.ones(4, 8), f"{name}.lora_B.weight": torch.ones(8, 4)}
    save_file({**unfolded(layers), **pair}, tmp_path / "mug.safetensors")
    with pytest.raises(BaseModelError, match=r"1 layers of this LoRA are of text encoders.*self_attn\.q_proj"):
        read_start(tmp_path / "mug.safetensors")


def test_layers_with_an_alpha_of_their_own_in_the_header_have_it(layers: Layers, tmp_path: Path) -> None:
    first = next(iter(layers))
    adapter = {"transformer.r": 4, "transformer.lora_alpha": 4, "transformer.alpha_pattern": {f"^{first}": 2}}
    save_file(unfolded(layers), tmp_path / "mug.safetensors", metadata={"lora_adapter_metadata": json.dumps(adapter)})
    stored = read_start(tmp_path / "mug.safetensors")
    assert {path: layer.scale for path, layer in stored.items()} == {**dict.fromkeys(layers, 1.0), first: 0.5}


def test_regular_expressions_of_a_header_are_not_run(layers: Layers, tmp_path: Path) -> None:
    adapter = {"transformer.r": 4, "transformer.lora_alpha": 4, "transformer.alpha_pattern": {"(a+)+$": 2}}
    save_file(unfolded(layers), tmp_path / "mug.safetensors", metadata={"lora_adapter_metadata": json.dumps(adapter)})
    with pytest.raises(BaseModelError, match="wanted the name of a layer"):
        read_start(tmp_path / "mug.safetensors")
