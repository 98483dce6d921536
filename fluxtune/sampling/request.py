"""What is asked of the sampler."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fluxtune.config.memory import MemoryConfig
from fluxtune.config.model import ModelConfig
from fluxtune.config.previews import LAST_SEED
from fluxtune.config.sampling import SamplingConfig
from fluxtune.errors import UsageError
from fluxtune.lora.use import LoraUse
from fluxtune.sampling.wanted import Wanted

if TYPE_CHECKING:
    from fluxtune.sampling.axes import Axis
    from fluxtune.sampling.prompts import PromptRow


def seeds_from(first: int, count: int, where: str) -> range:
    """So many seeds, counted up.

    Raises:
        UsageError: they go past the last seed that there is.
    """
    if first + count - 1 > LAST_SEED:
        raise UsageError(
            f"{count:,} seeds from {first} on go past the last that there is, {LAST_SEED}",
            where=where,
            hint="begin at a smaller seed, or take fewer",
        )
    return range(first, first + count)


@dataclass(frozen=True)
class SampleRequest:
    """Every prompt with every seed, and with every value of the axes.

    Attributes:
        prompts: texts, or rows that have settings of their own.
        steps: denoising steps; None takes what the base model wants.
        width, height: in pixels; of pictures with a ``start`` and no size of their own only the area counts, unless
            ``sized``.
        loras: act together, in this order.
        compare: also make each picture without the LoRAs, and a labelled grid of both.
        axes: what else is varied; the first goes across a labelled grid, the second down, more make several of them.
        again: pictures that are made as they were once; nothing else is made then.
        fingerprint: that the files of the base model must have, if any will not do.
        output: folder of the pictures; existing ones are never overwritten.
        precision: of the computation; ``memory`` says how the weights are held.
    """

    model: ModelConfig
    prompts: tuple[str | PromptRow, ...]
    seeds: tuple[int, ...]
    steps: int | None
    guidance: float
    width: int
    height: int
    output: Path
    loras: tuple[LoraUse, ...] = ()
    compare: bool = False
    axes: tuple[Axis, ...] = ()
    start: Path | None = None
    sized: bool = False
    again: tuple[Wanted, ...] = ()
    fingerprint: str | None = None
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    precision: Literal["bf16", "fp32"] = "bf16"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if not self.prompts and not self.again and not any(axis.name == "prompt" for axis in self.axes):
            raise UsageError(
                "there is no prompt", hint='give one: fluxtune sample "a red house"; or several: --prompts FILE'
            )
        if self.compare and not self.loras:
            raise UsageError(
                "--compare shows pictures with and without a LoRA, and there is no LoRA", hint="add --lora FILE"
            )
