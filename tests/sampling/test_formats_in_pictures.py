"""A LoRA's pictures, from each format it can be written in, through the stock pipeline, and from a fused model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from stock_flux import PROMPT, by_hand, lora_tensors

from fluxtune.config.memory import MemoryConfig
from fluxtune.config.model import ModelConfig
from fluxtune.events import ignore
from fluxtune.exporting.conversion import Wanted, write
from fluxtune.exporting.fusing import fuse
from fluxtune.exporting.methods import Checkpoint
from fluxtune.flux.base import open_base
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.conventions import LoraFormat
from fluxtune.lora.use import LoraUse
from fluxtune.nano import EMBEDDED, model_folder
from fluxtune.sampling.generate import sample
from fluxtune.sampling.loras import open_lora
from fluxtune.sampling.request import SampleRequest

Requests = Callable[..., SampleRequest]
Pictures = dict[str, np.ndarray]
READ_BY_DIFFUSERS = (LoraFormat.DIFFUSERS, LoraFormat.AI_TOOLKIT, LoraFormat.ONETRAINER)
"""Of attention, at any width."""
SIZE, STEPS = 64, 2
ATTENTION = tuple(
    f"{blocks}.0.attn.{name}"
    for blocks, names in (
        ("transformer_blocks", ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_v_proj", "to_add_out")),
        ("single_transformer_blocks", ("to_q", "to_k", "to_v")),
    )
    for name in names
)


def pixels(picture: Path | Image.Image) -> np.ndarray:
    with Image.open(picture) if isinstance(picture, Path) else picture as image:
        return np.asarray(image).astype(int)


@pytest.fixture(scope="module")
def nano() -> FluxPipeline:
    """The embedded model as anyone loads it."""
    return FluxPipeline.from_pretrained(model_folder(), torch_dtype=torch.float32)


@pytest.fixture(scope="module")
def files(nano: FluxPipeline, tmp_path_factory: pytest.TempPathFactory) -> dict[LoraFormat, Path]:
    """One LoRA of attention in every format."""
    generator = torch.Generator().manual_seed(1)
    layers = {}
    for path in ATTENTION:
        linear = nano.transformer.get_submodule(path)
        a = torch.randn(4, linear.in_features, generator=generator) / linear.in_features**0.5
        b = torch.randn(linear.out_features, 4, generator=generator) * 0.3
        layers[f"transformer.{path}"] = LoraLayer(a, b, 0.75)
    folder = tmp_path_factory.mktemp("formats")
    return {form: write(layers, {}, Wanted(form, folder / f"{form}.safetensors", "fp32")).file for form in LoraFormat}


@pytest.fixture
def painted(request_for: Requests, tmp_path: Path) -> Callable[..., np.ndarray]:
    """The embedded model's picture with some LoRAs."""

    def paint(*uses: LoraUse) -> np.ndarray:
        request = request_for(
            model=ModelConfig(base=EMBEDDED), loras=uses, width=SIZE, height=SIZE, output=tmp_path / "made"
        )
        return pixels(sample(request).pictures[0])

    return paint


def test_every_format_makes_the_same_picture(files: dict[LoraFormat, Path], painted: Callable[..., np.ndarray]) -> None:
    made = {form: painted(LoraUse(file, 0.5)) for form, file in files.items()}
    first = made[LoraFormat.DIFFUSERS]
    assert all(abs(picture - first).max() <= 1 for picture in made.values())
    assert abs(painted() - first).max() > 20


@pytest.mark.parametrize("form", READ_BY_DIFFUSERS)
def test_the_stock_pipeline_makes_the_same_picture_from_each_format_that_it_reads(
    form: LoraFormat, files: dict[LoraFormat, Path], painted: Callable[..., np.ndarray], nano: FluxPipeline
) -> None:
    nano.load_lora_weights(files[form], adapter_name=str(form))
    nano.set_adapters([str(form)], [0.5])
    theirs = pixels(by_hand(nano, width=SIZE, height=SIZE, num_inference_steps=STEPS))
    nano.unload_lora_weights()
    assert abs(painted(LoraUse(files[form], 0.5)) - theirs).max() <= 1


def test_a_scale_of_a_group_is_that_of_a_lora_without_the_other_layers(
    files: dict[LoraFormat, Path], painted: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    base = open_base(ModelConfig(base=EMBEDDED))
    layers = open_lora(LoraUse(files[LoraFormat.KOHYA]), base).layers
    doubles = {path: layer for path, layer in layers.items() if path.startswith("transformer.transformer_blocks")}
    alone = write(doubles, {}, Wanted(LoraFormat.DIFFUSERS, tmp_path / "doubles.safetensors", "fp32")).file
    by_group = painted(LoraUse(files[LoraFormat.KOHYA], 1.0, (("single", 0.0),)))
    assert abs(by_group - painted(LoraUse(alone))).max() <= 1
    assert abs(by_group - painted(LoraUse(files[LoraFormat.KOHYA]))).max() > 5


def test_a_fused_lora_makes_the_same_picture_as_one_beside_the_model(
    request_for: Requests, tiny_flux: Path, lora: Path, tmp_path: Path
) -> None:
    base = open_base(ModelConfig(base=str(tiny_flux)))
    use = LoraUse(lora, 0.5, (("single", 0.5),))
    fuse(base, [(open_lora(use, base).acting(), 1.0)], Checkpoint.DIFFUSERS, tmp_path / "fused", "fp32", ignore)
    beside = pixels(sample(request_for(loras=(use,))).pictures[0])
    fused = pixels(sample(request_for(model=ModelConfig(base=str(tmp_path / "fused")))).pictures[0])
    assert abs(beside - fused).max() <= 1
    assert abs(beside - pixels(sample(request_for()).pictures[0])).max() > 5


def test_a_lora_in_other_names_makes_the_stock_pipelines_picture(
    request_for: Requests, stock: Callable[[], FluxPipeline], tmp_path: Path
) -> None:
    pipeline = stock()
    tensors = lora_tensors(pipeline, 1)
    layers = {
        key.removesuffix(".lora_A.weight"): LoraLayer(a, tensors[key.replace("lora_A", "lora_B")], 1.0)
        for key, a in tensors.items()
        if "lora_A" in key
    }
    file = write(layers, {}, Wanted(LoraFormat.KOHYA, tmp_path / "kohya.safetensors", "fp32")).file
    pipeline.load_lora_weights(tensors)
    memory = MemoryConfig(base_precision="fp32", text_precision="fp32")
    made = sample(request_for(prompts=(PROMPT,), loras=(LoraUse(file),), memory=memory)).pictures[0]
    assert abs(pixels(made) - pixels(by_hand(pipeline))).max() <= 1
