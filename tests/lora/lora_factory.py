"""Adapters with weights as after some training."""

from __future__ import annotations

from typing import Any

import torch

from fluxtune.config.lora import LoraConfig
from fluxtune.flux.families import FLUX1
from fluxtune.lora.adapter import LoraLayer, adapter_layers, adapter_parameters, attach, scale_of
from fluxtune.lora.metadata import LoraFacts

FACTS = LoraFacts(
    name="zorvex",
    base="black-forest-labs/FLUX.1-dev",
    architecture="flux-1-dev/lora",
    rank=4,
    steps=300,
    epochs=25,
    learning_rate=1e-4,
    optimizer="adamw-8bit",
    seed=42,
    resolution=1024,
    pictures=12,
    started=1_700_000_000.0,
    finished=1_700_000_600.0,
    trigger="zorvex",
    version="0.1",
)


def trained(transformer: Any, **settings: Any) -> dict[str, LoraLayer]:
    """Attach an adapter whose B is no longer zero; returns its layers."""
    config = LoraConfig(**{"rank": 4, **settings})
    attach(transformer, config, FLUX1, seed=1)
    parameters = adapter_parameters(transformer)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name.endswith(".lora_B"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return adapter_layers(dict(parameters), scale_of(config))
