"""The second reader against the first one's writer, and against files that were tampered with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from merge_oracle import rows
from safetensors.torch import save_file

from fluxtune.errors import VerificationError
from fluxtune.exporting.second_reader import compare
from fluxtune.flux.families import FLUX1
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.conventions import CONVENTIONS, LoraFormat
from fluxtune.lora.encoding import encoded

WIDTH = 32
Layers = dict[str, LoraLayer]


@pytest.fixture
def layers() -> Layers:
    """Every layer of two double and two single blocks and what is outside, and some of both text encoders."""
    generator = torch.Generator().manual_seed(5)
    heights = {f"transformer.{path}": 16 if path == "proj_out" else height * WIDTH for path, _, _, height in rows(2, 2)}
    heights |= {
        "text_encoder.text_model.encoder.layers.3.mlp.fc1": 64,
        "text_encoder.text_model.encoder.layers.3.self_attn.out_proj": 32,
    }
    return {
        path: LoraLayer(torch.randn(3, WIDTH, generator=generator), torch.randn(height, 3, generator=generator), 0.7)
        for path, height in heights.items()
    }


def written(path: Path, layers: Layers, form: LoraFormat) -> dict[str, torch.Tensor]:
    tensors = encoded(layers, FLUX1.layer_names, CONVENTIONS[form], torch.float32).tensors
    save_file(tensors, path)
    return tensors


@pytest.mark.parametrize("form", LoraFormat)
def test_a_second_reader_sees_the_same_change_in_every_format(form: LoraFormat, layers: Layers, tmp_path: Path) -> None:
    if form is LoraFormat.AI_TOOLKIT:
        layers = {path: layer for path, layer in layers.items() if path.startswith("transformer.")}
    written(tmp_path / "lora.safetensors", layers, form)
    assert compare(tmp_path / "lora.safetensors", layers, 1e-6) < 1e-6


def test_layers_of_t5_are_known_where_a_format_has_them(tmp_path: Path) -> None:
    path = "text_encoder_2.encoder.block.2.layer.1.DenseReluDense.wi_0"
    layers = {path: LoraLayer(torch.ones(2, 8), torch.ones(16, 2), 1.0)}
    for form in (LoraFormat.KOHYA, LoraFormat.COMFYUI, LoraFormat.ONETRAINER):
        written(tmp_path / "lora.safetensors", layers, form)
        assert compare(tmp_path / "lora.safetensors", layers, 1e-6) < 1e-6


@pytest.mark.parametrize("form", [LoraFormat.DIFFUSERS, LoraFormat.KOHYA])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("a weight", "would be changed otherwise"),
        ("an alpha", "would be changed otherwise"),
        ("a layer", "missing or extra"),
        ("half a layer", "known to no reader"),
        ("a name", "known to no reader"),
    ],
)
def test_a_file_that_says_something_else_is_refused(
    form: LoraFormat, damage: str, message: str, layers: Layers, tmp_path: Path
) -> None:
    tensors = written(tmp_path / "lora.safetensors", layers, form)
    up = next(key for key in tensors if key.endswith(("to_out.0.lora_B.weight", "img_attn_proj.lora_up.weight")))
    name = up.removesuffix(".lora_B.weight").removesuffix(".lora_up.weight")
    match damage:
        case "a weight":
            tensors[up] = tensors[up].clone()
            tensors[up].flatten()[0] += 1.0
        case "an alpha":
            tensors[f"{name}.alpha"] = torch.tensor(1.0)
        case "a layer":
            tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(f"{name}.")}
        case "half a layer":
            del tensors[up]
        case "a name":
            tensors["lora_unet_double_blocks_0_img_attn_q.lora_down.weight"] = torch.ones(2, 2)
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(VerificationError, match=message):
        compare(tmp_path / "lora.safetensors", layers, 1e-6)


def peak() -> float:
    """MiB that this process held at most since ``forget_peak``."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the system does not forget the largest size of a process")


def test_a_large_file_is_read_weight_by_weight(tmp_path: Path) -> None:
    layers = {
        f"transformer.transformer_blocks.{number}.attn.to_q": LoraLayer(
            torch.ones(128, 1024), torch.ones(1024, 128), 1.0
        )
        for number in range(64)
    }
    file = tmp_path / "lora.safetensors"
    save_file(encoded(layers, FLUX1.layer_names, CONVENTIONS[LoraFormat.DIFFUSERS], torch.float32).tensors, file)
    forget_peak()
    before = peak()
    assert compare(file, layers, 1e-6) == 0.0
    # Its 64 MiB are mapped; in float64, and as they should be beside, they would take 256 more.
    assert peak() - before < 110
