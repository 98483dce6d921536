"""Written files as diffusers' own converters read them, and files that they read otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fluxtune.errors import ExitCode, VerificationError
from fluxtune.exporting.conversion import Wanted, write
from fluxtune.exporting.diffusers_reader import compare_with_diffusers
from fluxtune.exporting.limits import read_by_diffusers
from fluxtune.flux.families import FLUX1
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.conventions import CONVENTIONS, LoraFormat
from fluxtune.lora.encoding import encoded

WIDTH = 3072
Layers = dict[str, LoraLayer]
ATTENTION = "transformer.transformer_blocks.18.attn"
CLIP = "text_encoder.text_model.encoder.layers.3.self_attn.q_proj"
T5 = "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"


def layer(rank: int, width: int, height: int, seed: int) -> LoraLayer:
    generator = torch.Generator().manual_seed(seed)
    return LoraLayer(
        torch.randn(rank, width, generator=generator), torch.randn(height, rank, generator=generator), 0.75
    )


@pytest.fixture(scope="module")
def layers() -> Layers:
    """Attention of true width, with ranks of its own and a part left out, and a layer of CLIP."""
    return {
        f"{ATTENTION}.to_q": layer(2, WIDTH, WIDTH, 1),
        f"{ATTENTION}.to_v": layer(3, WIDTH, WIDTH, 2),
        f"{ATTENTION}.to_add_out": layer(2, WIDTH, WIDTH, 3),
        "transformer.single_transformer_blocks.37.attn.to_k": layer(2, WIDTH, WIDTH, 4),
        CLIP: layer(2, 768, 768, 6),
    }


def written(file: Path, layers: Layers, form: LoraFormat, **metadata: str) -> Path:
    tensors = encoded(layers, FLUX1.layer_names, CONVENTIONS[form], torch.float32).tensors
    save_file(tensors, file, metadata or None)
    return file


@pytest.mark.parametrize("form", [LoraFormat.DIFFUSERS, LoraFormat.ONETRAINER, LoraFormat.KOHYA, LoraFormat.COMFYUI])
def test_diffusers_reads_what_was_written_in_every_format_that_it_knows(
    form: LoraFormat, layers: Layers, tmp_path: Path
) -> None:
    read = read_by_diffusers(layers, form, FLUX1)
    assert read == set(layers) - ({CLIP} if form in (LoraFormat.KOHYA, LoraFormat.COMFYUI) else set())
    file = written(tmp_path / "lora.safetensors", layers, form)
    assert compare_with_diffusers(file, layers, read, FLUX1, 1e-5) < 1e-5


def test_layers_that_diffusers_passes_over_are_not_expected_of_it(layers: Layers, tmp_path: Path) -> None:
    more = {**layers, "transformer.x_embedder": layer(2, 64, WIDTH, 7), T5: layer(2, 8, 8, 8)}
    for form in (LoraFormat.KOHYA, LoraFormat.COMFYUI):
        assert read_by_diffusers(more, form, FLUX1) == set(layers) - {CLIP}
        made = write(more, {}, Wanted(form, tmp_path / f"{form}.safetensors", "fp32"))
        assert made.diffusers_error is not None and made.diffusers_error < 1e-6


@pytest.mark.parametrize(
    ("form", "path", "own"),
    [
        (LoraFormat.KOHYA, "transformer.transformer_blocks.0.attn.to_q", layer(2, 64, 64, 1)),
        (LoraFormat.KOHYA, "transformer.transformer_blocks.19.attn.to_q", layer(2, WIDTH, WIDTH, 1)),
        (LoraFormat.ONETRAINER, "transformer.transformer_blocks.0.ff.net.2", layer(2, 4 * WIDTH, WIDTH, 1)),
        (LoraFormat.ONETRAINER, T5, layer(2, 8, 8, 1)),
    ],
    ids=["another width", "more blocks", "an mlp of OneTrainer", "T5 of OneTrainer"],
)
def test_files_that_diffusers_cannot_read_are_not_asked_of_it(
    form: LoraFormat, path: str, own: LoraLayer, tmp_path: Path
) -> None:
    assert read_by_diffusers({path: own}, form, FLUX1) == set()
    made = write({path: own}, {}, Wanted(form, tmp_path / "lora.safetensors", "fp32"))
    assert made.error is not None and made.diffusers_error is None


def test_a_header_that_makes_diffusers_scale_again_fails_the_verification(layers: Layers, tmp_path: Path) -> None:
    header = json.dumps({"transformer.r": 2, "transformer.lora_alpha": 1})
    file = written(tmp_path / "lora.safetensors", layers, LoraFormat.KOHYA, lora_adapter_metadata=header)
    with pytest.raises(VerificationError, match="would scale it again") as error:
        compare_with_diffusers(file, layers, set(layers) - {CLIP}, FLUX1, 1e-5)
    assert (error.value.exit_code, error.value.where) == (ExitCode.VERIFICATION, str(file))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("a weight", f"would change {ATTENTION}.to_add_out otherwise"),
        ("a layer", rf"1 layers are missing or extra .*{ATTENTION}.to_add_out"),
        ("an extra layer", r"1 layers are missing or extra .*to_out\.0"),
        ("a key", "refuses it"),
    ],
)
def test_a_file_that_diffusers_reads_otherwise_fails_the_verification(
    damage: str, message: str, layers: Layers, tmp_path: Path
) -> None:
    tensors = encoded(layers, FLUX1.layer_names, CONVENTIONS[LoraFormat.KOHYA], torch.float32).tensors
    name = "lora_unet_double_blocks_18_txt_attn_proj"
    match damage:
        case "a weight":
            tensors[f"{name}.lora_up.weight"] = tensors[f"{name}.lora_up.weight"] * 1.1
        case "a layer":
            tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(name)}
        case "an extra layer":
            for half in ("lora_down", "lora_up"):
                other = f"{name.replace('txt', 'img')}.{half}.weight"
                tensors[other] = tensors[f"{name}.{half}.weight"].clone()
        case "a key":
            tensors["lora_unet_oops.lora_down.weight"] = torch.ones(2, 2)
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(VerificationError, match=message):
        compare_with_diffusers(tmp_path / "lora.safetensors", layers, set(layers) - {CLIP}, FLUX1, 1e-5)
