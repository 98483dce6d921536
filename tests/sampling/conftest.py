"""LoRA files for the tiny FLUX, made by peft and written by diffusers or by fluxtune's own writer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import save_file

from fluxtune.config.memory import MemoryConfig
from fluxtune.config.model import ModelConfig
from fluxtune.sampling.request import SampleRequest

PROMPT = "a red ball on a blue background"
SIZE = (64, 96)
LAYERS = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.proj_mlp")


def lora_tensors(pipeline: FluxPipeline, seed: int, layers: tuple[str, ...] = LAYERS) -> dict[str, torch.Tensor]:
    """Random rank-4 pairs for some layers, large enough to change a picture."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for path in layers:
        layer = pipeline.transformer.get_submodule(path)
        tensors[f"transformer.{path}.lora_A.weight"] = torch.randn(4, layer.in_features, generator=generator)
        tensors[f"transformer.{path}.lora_B.weight"] = torch.randn(layer.out_features, 4, generator=generator)
    return tensors


@pytest.fixture(scope="session")
def stock(tiny_flux: Path) -> Callable[[], FluxPipeline]:
    """A fresh stock pipeline, as anyone loads it."""
    return lambda: FluxPipeline.from_pretrained(tiny_flux)


@pytest.fixture(scope="session")
def lora(tmp_path_factory: pytest.TempPathFactory, stock: Callable[[], FluxPipeline]) -> Path:
    """A LoRA file for the tiny FLUX."""
    path = tmp_path_factory.mktemp("loras") / "mug.safetensors"
    save_file(lora_tensors(stock(), 1), path, metadata={"format": "pt", "ss_output_name": "mug"})
    return path


@pytest.fixture
def request_for(tiny_flux: Path, tmp_path: Path) -> Callable[..., SampleRequest]:
    """A request with small defaults; keywords change it."""

    def make(**changes: Any) -> SampleRequest:
        usual: dict[str, Any] = {
            "model": ModelConfig(base=str(tiny_flux)),
            "prompts": (PROMPT,),
            "seeds": (7,),
            "steps": 2,
            "guidance": 3.5,
            "width": SIZE[0],
            "height": SIZE[1],
            "output": tmp_path / "pictures",
            "memory": MemoryConfig(base_precision="fp32", text_precision="fp32"),
            "precision": "fp32",
            "device": "cpu",
        }
        return SampleRequest(**{**usual, **changes})

    return make


def by_hand(pipeline: FluxPipeline, prompt: str = PROMPT, seed: int = 7, **changes: Any) -> Any:
    """The picture as diffusers' documentation would make it."""
    pipeline.set_progress_bar_config(disable=True)
    usual: dict[str, Any] = {
        "width": SIZE[0],
        "height": SIZE[1],
        "num_inference_steps": 2,
        "guidance_scale": 3.5,
        "max_sequence_length": pipeline.tokenizer_2.model_max_length,
    }
    generator = torch.Generator("cpu").manual_seed(seed)
    return pipeline(prompt, generator=generator, **{**usual, **changes}).images[0]
