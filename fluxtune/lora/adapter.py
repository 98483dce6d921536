"""The adapter inside the transformer: ``W x + scale * B (A x)``, only A and B trained (arXiv 2106.09685).

peft does the injection, on plain and on quantised layers alike, of the layer in ``branch.py``; A and B are always
float32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fluxtune.config.lora import LoraConfig
from fluxtune.errors import UsageError, some_names
from fluxtune.flux.families import Family
from fluxtune.lora.targets import narrowest_group, target_layers

ADAPTER = "default"


@dataclass(frozen=True)
class LoraLayer:
    """One layer's adapter: ``A [rank, in]`` and ``B [out, rank]``; the layer's change is ``scale * B @ A``.

    Attributes:
        growth: ``[out]``, of a DoRA: ``scale * growth * W`` is part of the change, row by row of the base's own weight.
            Only who asks for it when a file is read gets it.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    growth: torch.Tensor | None = None


def scale_of(config: LoraConfig) -> float:
    """alpha / rank, or alpha / sqrt(rank) when rank-stabilised (arXiv 2312.03732)."""
    alpha = config.rank if config.alpha is None else config.alpha
    return alpha / (math.sqrt(config.rank) if config.rank_stabilized else config.rank)


def attach(transformer: Any, config: LoraConfig, family: Family, seed: int) -> list[str]:
    """Inject a fresh adapter (B is zero, so the model's output is unchanged) and freeze everything else.

    Returns:
        The paths of the adapted layers.
    """
    from peft import LoraConfig as PeftConfig

    from fluxtune.lora.branch import AdaptedLinear

    paths = target_layers(transformer, config, family)
    exactly = "|".join(re.escape(path) for path in paths)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wanted = PeftConfig(
            r=config.rank,
            lora_alpha=config.rank if config.alpha is None else config.alpha,
            target_modules=f"^(?:{exactly})$",
            lora_dropout=config.dropout,
            use_rslora=config.rank_stabilized,
            init_lora_weights=True,
        )
        wanted._register_custom_module({nn.Linear: AdaptedLinear})
        transformer.add_adapter(wanted, adapter_name=ADAPTER)
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_(_is_adapter(name))
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return paths


def adapter_parameters(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters by name (``PATH.lora_A``, ``PATH.lora_B``), in a fixed order."""
    return {_plain_name(name): parameter for name, parameter in transformer.named_parameters() if _is_adapter(name)}


def adapter_layers(parameters: dict[str, torch.Tensor], scale: float) -> dict[str, LoraLayer]:
    """Pair ``PATH.lora_A`` and ``PATH.lora_B`` into layers, detached."""
    paths = [name.removesuffix(".lora_A") for name in parameters if name.endswith(".lora_A")]
    return {
        path: LoraLayer(parameters[f"{path}.lora_A"].detach(), parameters[f"{path}.lora_B"].detach(), scale)
        for path in paths
    }


def require_fit(
    layers: dict[str, LoraLayer],
    transformer: nn.Module,
    paths: list[str],
    config: LoraConfig,
    family: Family,
    where: str,
) -> list[str]:
    """Check that an adapter on ``paths`` can start from ``layers``; the transformer may be on the meta device.

    Returns:
        Those of ``paths`` that the file has nothing for: they begin at zero.

    Raises:
        UsageError: the file adapts layers that the configuration does not ask for, or with a higher rank.
    """
    known = {name for name, _ in transformer.named_modules()}
    if foreign := [path for path in layers if path not in known]:
        raise UsageError(
            f"{len(foreign)} of the {len(layers)} layers of the LoRA are none of the model: {some_names(foreign)}",
            where=where,
            hint="train on the base model that the LoRA was made for",
        )
    if left_out := sorted(set(layers) - set(paths)):
        raise UsageError(
            f"{len(left_out)} of the {len(layers)} layers of the LoRA are not among lora.targets, so they would be "
            f"lost: {some_names(left_out)}",
            where=where,
            hint=f"train them too: --set lora.targets={narrowest_group(layers, family)}",
        )
    highest = max(layer.a.shape[0] for layer in layers.values())
    for path, layer in layers.items():
        linear, rank = transformer.get_submodule(path), config.rank
        shape = layer.b.shape[0], layer.a.shape[1]
        if layer.a.shape[0] > rank or shape != (linear.out_features, linear.in_features):
            raise UsageError(
                f"{path} has rank {layer.a.shape[0]} and shape {list(shape)}; "
                f"the configuration asks for rank {rank} and the model for {[linear.out_features, linear.in_features]}",
                where=where,
                hint=f"train with --rank {highest} on the base model that the LoRA was made for",
            )
    return [path for path in paths if path not in layers]


@torch.no_grad()
def start_from(
    transformer: nn.Module, layers: dict[str, LoraLayer], config: LoraConfig, family: Family, where: str
) -> None:
    """Set the attached adapter to ``layers``, so that it computes exactly their change.

    What a layer has more of rank stays as it was attached, and so do the adapter's other layers.

    Raises:
        UsageError: as ``require_fit``.
    """
    parameters = adapter_parameters(transformer)
    paths = [name.removesuffix(".lora_A") for name in parameters if name.endswith(".lora_A")]
    require_fit(layers, transformer, paths, config, family, where)
    for path, layer in layers.items():
        rank = layer.a.shape[0]
        parameters[f"{path}.lora_A"][:rank].copy_(layer.a)
        parameters[f"{path}.lora_B"][:, :rank].copy_(layer.b.float() * (layer.scale / scale_of(config)))


@contextmanager
def adapter_disabled(transformer: Any) -> Iterator[None]:
    """Inside, the transformer is the base model."""
    transformer.disable_adapters()
    try:
        yield
    finally:
        transformer.enable_adapters()


@contextmanager
@torch.no_grad()
def as_saved(
    parameters: dict[str, nn.Parameter], scale: float, file_dtype: torch.dtype, dtype: torch.dtype
) -> Iterator[None]:
    """Inside, the adapter holds what a file of ``file_dtype`` would hold (its B has the scale folded in), and computes
    in ``dtype``, that of the model which such a file would be loaded into."""
    trained = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            folded = scale if name.endswith(".lora_B") else 1.0
            parameter.data = ((parameter.data * folded).to(file_dtype).float() / folded).to(dtype)
        yield
    finally:
        for name, value in trained.items():
            parameters[name].data = value


def _is_adapter(name: str) -> bool:
    return f".lora_A.{ADAPTER}." in name or f".lora_B.{ADAPTER}." in name


def _plain_name(name: str) -> str:
    return name.removesuffix(f".{ADAPTER}.weight")
