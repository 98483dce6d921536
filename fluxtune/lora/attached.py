"""LoRAs that act on a frozen model, as many as wanted, each layer at a scale of its own; nothing is trained.

peft computes ``W x + sum of scale * B (A x)`` on plain and on quantised layers. What a DoRA adds to that, the growth of
the rows of ``W x``, is added to what the layer itself answers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fluxtune.flux.modulation import RowLinear
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.low_rank import rank_of


def set_acting(module: Any, loras: Mapping[str, Mapping[str, LoraLayer]]) -> None:
    """Make exactly these LoRAs act on a module, under names of their own.

    Of one that is there already under its name only the scales change; those that are not named any more go.

    Args:
        module: a model of diffusers or transformers, which knows its ``dtype``.
        loras: name -> layers by the module's own paths.
    """
    present = dict(getattr(module, "peft_config", {}))
    for name in present.keys() - loras.keys():
        _detach(module, name)
    for name, layers in loras.items():
        if name not in present:
            _attach(module, name, layers)
    for path, adapted in _adapted(module):
        names = [name for name, layers in loras.items() if path in layers]
        adapted.set_adapter(names, inference_mode=True)
        for name in names:
            adapted.scaling[name] = loras[name][path].scale


def _attach(module: Any, name: str, layers: Mapping[str, LoraLayer]) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(**_shape_of(layers)), module, name, low_cpu_mem_usage=True)
    for path, layer in layers.items():
        adapted = module.get_submodule(path)
        for half, weight in ((adapted.lora_A, layer.a), (adapted.lora_B, layer.b)):
            # In the precision of the model, as diffusers' loader does.
            half[name].weight = nn.Parameter(weight.to(module.dtype), requires_grad=False)
        adapted._move_adapter_to_device_of_base_layer(name)
        if layer.growth is not None:
            _growth_of(adapted).rows[name] = layer.growth


def _shape_of(layers: Mapping[str, LoraLayer]) -> dict[str, Any]:
    """The settings of an adapter on exactly these layers; one pattern a rank, for peft tries each on each layer."""
    ranks = {path: rank_of(layer) for path, layer in layers.items()}
    ((usual, _),) = Counter(ranks.values()).most_common(1)
    others = sorted(set(ranks.values()) - {usual})
    patterns = {f"^{_exactly(path for path, own in ranks.items() if own == rank)}": rank for rank in others}
    return {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": patterns,
        "target_modules": f"^{_exactly(layers)}$",
        "init_lora_weights": False,
    }


def _exactly(paths: Iterable[str]) -> str:
    return f"(?:{'|'.join(map(re.escape, paths))})"


def _detach(module: Any, name: str) -> None:
    for _, adapted in _adapted(module):
        adapted.set_adapter([], inference_mode=True)
        adapted.delete_adapter(name)
        growth = getattr(adapted, "growth", None)
        if growth is not None:
            growth.rows.pop(name, None)
    del module.peft_config[name]
    if not module.peft_config:
        del module.peft_config


def _adapted(module: nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer as PeftLayer

    return ((path, layer) for path, layer in module.named_modules() if isinstance(layer, PeftLayer))


def _growth_of(adapted: Any) -> _Growth:
    """What grows the rows of a layer; made once a layer."""
    growth: _Growth | None = getattr(adapted, "growth", None)
    if growth is None:
        growth = adapted.growth = _Growth(adapted)
        adapted.get_base_layer().register_forward_hook(growth)
    return growth


class _Growth:
    """Adds ``sum of scale * growth * (W x)`` to what a layer answers.

    Attributes:
        rows: name of an adapter -> growth of each row.
    """

    def __init__(self, adapted: Any) -> None:
        self.rows: dict[str, torch.Tensor] = {}
        self._adapted = adapted

    def __call__(self, layer: Any, _: Any, answer: torch.Tensor) -> torch.Tensor | None:
        acting = [name for name in self._adapted.active_adapters if name in self.rows]
        if not acting:
            return None
        for name in acting:
            self.rows[name] = self.rows[name].to(answer.device)
        growth = sum(self._adapted.scaling[name] * self.rows[name] for name in acting)
        bias = layer.held_bias if isinstance(layer, RowLinear) else layer.bias
        own = answer if bias is None else answer - bias.to(answer)
        return answer + own * torch.as_tensor(growth).to(answer.dtype)
