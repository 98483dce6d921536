"""What is asked of the sampler."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fluxtune.config.memory import MemoryConfig
from fluxtune.config.model import ModelConfig
from fluxtune.errors import UsageError
from fluxtune.lora.use import LoraUse


@dataclass(frozen=True)
class SampleRequest:
    """Every prompt with every seed.

    Attributes:
        steps: denoising steps; None takes what the base model wants.
        width, height: in pixels.
        loras: act together, in this order.
        compare: also make each picture without the LoRAs, and a labelled grid of both.
        output: folder of the pictures; existing ones are never overwritten.
        precision: of the computation; ``memory`` says how the weights are held.
    """

    model: ModelConfig
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int | None
    guidance: float
    width: int
    height: int
    output: Path
    loras: tuple[LoraUse, ...] = ()
    compare: bool = False
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    precision: Literal["bf16", "fp32"] = "bf16"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if not self.prompts:
            raise UsageError(
                "there is no prompt", hint='give one: fluxtune sample "a red house"; or several: --prompts FILE'
            )
        if self.compare and not self.loras:
            raise UsageError(
                "--compare shows pictures with and without a LoRA, and there is no LoRA", hint="add --lora FILE"
            )
