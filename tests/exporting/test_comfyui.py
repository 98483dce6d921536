"""Exports through ComfyUI itself: ``FLUXTUNE_COMFYUI`` names its folder, ``FLUXTUNE_COMFYUI_PYTHON`` its Python.

Without the folder these tests are skipped. No graphics card, model or server is needed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from comfy_files import weights_of
from foreign_files import FILES
from merge_oracle import rows
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fluxtune.exporting.conversion import Wanted, write
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.conventions import LoraFormat

COMFYUI = os.environ.get("FLUXTUNE_COMFYUI")
PYTHON = os.environ.get("FLUXTUNE_COMFYUI_PYTHON", sys.executable)

pytestmark = pytest.mark.skipif(not COMFYUI, reason="FLUXTUNE_COMFYUI names no folder of ComfyUI")

Layers = dict[str, LoraLayer]
ATTENTION = ("attn.to_q", "attn.to_v", "proj_mlp", "attn.add_k_proj", "attn.to_out.0")


@pytest.fixture(scope="module")
def layers(tiny_flux: Path) -> Layers:
    """A LoRA of every matrix of the tiny FLUX, ranks and scales of their own."""
    generator = torch.Generator().manual_seed(4)
    matrices = [name for name, weight in weights_of(tiny_flux, "transformer").items() if weight.ndim == 2]
    shapes = {name: weight.shape for name, weight in weights_of(tiny_flux, "transformer").items()}
    return {
        f"transformer.{name.removesuffix('.weight')}": LoraLayer(
            torch.randn(2 + number % 3, shapes[name][1], generator=generator),
            torch.randn(shapes[name][0], 2 + number % 3, generator=generator),
            0.5 + number % 2,
        )
        for number, name in enumerate(matrices)
    }


def through_comfyui(file: Path, output: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Weight of the checkpoint -> its change, and what ComfyUI complains of."""
    script = Path(__file__).with_name("comfyui_changes.py")
    made = subprocess.run(
        [PYTHON, str(script), str(COMFYUI), str(file), str(output)], capture_output=True, text=True, cwd=file.parent
    )
    assert made.returncode == 0, made.stderr[-3000:]
    with safe_open(output, framework="pt") as stored:
        return load_file(output), json.loads(stored.metadata()["complaints"])


def placed(changes: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Changes of diffusers' layers, by the key tables in their rows of the checkpoint's weights."""
    found: dict[str, torch.Tensor] = {}
    for ours, theirs, offset, _ in rows(2, 2):
        change = changes.get(f"transformer.{ours}")
        if change is None:
            continue
        if ours == "norm_out.linear":
            change = torch.cat(change.chunk(2)[::-1])
        fused = {"qkv": 3, "linear1": 7}.get(theirs.rpartition(".")[2])
        width = change.shape[1]
        whole = found.setdefault(f"{theirs}.weight", torch.zeros(fused * width if fused else len(change), width))
        whole[offset * width : offset * width + len(change)] += change
    return found


def require_same(seen: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(seen) == set(expected)
    for name, change in expected.items():
        assert float((seen[name] - change).norm() / change.norm()) < 1e-5, name


@pytest.mark.parametrize("form", LoraFormat)
@pytest.mark.parametrize("chosen", ["all layers", "parts of fused layers"])
def test_comfyui_changes_every_weight_as_the_layers_say_and_complains_of_nothing(
    form: LoraFormat, chosen: str, layers: Layers, tmp_path: Path
) -> None:
    own = (
        layers if chosen == "all layers" else {path: each for path, each in layers.items() if path.endswith(ATTENTION)}
    )
    file = write(own, {}, Wanted(form, tmp_path / "lora.safetensors", "fp32")).file
    seen, complaints = through_comfyui(file, tmp_path / "changes.safetensors")
    assert not [told for told in complaints if "lora" in told.lower()]
    require_same(seen, placed({path: each.scale * each.b @ each.a for path, each in own.items()}))


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("XLabs", "a peft model")])
def test_comfyui_changes_by_the_formulas_of_other_trainers_files_too(name: str, tmp_path: Path) -> None:
    foreign = FILES[name]()
    if "lora_adapter_metadata" in foreign.header:
        pytest.skip("ComfyUI reads no header, and so no alpha of these files")
    save_file(foreign.tensors, tmp_path / "lora.safetensors", foreign.header or None)
    seen, _ = through_comfyui(tmp_path / "lora.safetensors", tmp_path / "changes.safetensors")
    require_same(seen, placed(foreign.changes))


def test_comfyui_tells_of_a_key_that_it_does_not_know(layers: Layers, tmp_path: Path) -> None:
    file = write(layers, {}, Wanted(LoraFormat.KOHYA, tmp_path / "lora.safetensors", "fp32")).file
    tensors = load_file(file)
    tensors["lora_unet_oops.lora_down.weight"] = torch.ones(2, 2)
    save_file(tensors, file)
    _, complaints = through_comfyui(file, tmp_path / "changes.safetensors")
    assert "lora key not loaded: lora_unet_oops.lora_down.weight" in complaints
