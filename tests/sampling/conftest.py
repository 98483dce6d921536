"""Fixtures: the stock pipeline, a LoRA file for it, and requests with small defaults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import FluxPipeline
from safetensors.torch import save_file
from stock_flux import PROMPT, SIZE, lora_tensors

from fluxtune.config.memory import MemoryConfig
from fluxtune.config.model import ModelConfig
from fluxtune.sampling.request import SampleRequest


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
