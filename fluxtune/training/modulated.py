"""Whether the modulation is computed ahead: not where the LoRA trains what it is computed from."""

from __future__ import annotations

from fluxtune.config.memory import MemoryConfig
from fluxtune.config.schema import Config
from fluxtune.errors import UsageError, some_names
from fluxtune.flux.families import Family
from fluxtune.lora.targets import targeted_embedders


def settled_memory(config: Config, family: Family) -> MemoryConfig:
    """``config.memory`` with a decision on ``modulation``.

    Raises:
        UsageError: it is to be computed ahead, from embedders that are trained.
    """
    memory, trained = config.memory, targeted_embedders(config.lora, family)
    if memory.modulation == "card":
        return memory
    if trained and memory.modulation == "ahead":
        raise UsageError(
            f'memory.modulation is "ahead", but lora.targets trains {some_names(trained)}, and with these the '
            "modulation changes every step",
            where="memory.modulation",
            hint='set memory.modulation = "auto" or "card"; or name other layers in lora.targets',
        )
    return memory.model_copy(update={"modulation": "card" if trained else "ahead"})
