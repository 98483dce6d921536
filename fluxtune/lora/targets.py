"""Which layers of the transformer get an adapter."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase

from torch import nn

from fluxtune.config.lora import LoraConfig
from fluxtune.errors import ConfigError, UsageError
from fluxtune.flux.families import Family


def target_layers(transformer: nn.Module, config: LoraConfig, family: Family) -> list[str]:
    """Full paths of the linear layers that ``config.targets`` names, in the order of the model.

    A target is one of the family's groups (attention, attention+mlp, all-linear) or a list of patterns, matched
    against the whole path with shell wildcards.

    Raises:
        ConfigError: there is no pattern, or one matches no linear layer.
    """
    linears = [path for path, module in transformer.named_modules() if _is_linear(module)]
    patterns = _patterns(config, family)
    problems: list[UsageError] = []
    if not patterns:
        problems.append(
            UsageError(
                "no layer is named, so nothing would be trained",
                where="lora.targets",
                hint="name a group: " + ", ".join(family.lora_targets),
            )
        )
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in linears):
            problems.append(
                UsageError(
                    f"the pattern {pattern!r} matches no linear layer of the model",
                    where="lora.targets",
                    hint=f"layers look like {linears[0]!r} and {linears[-1]!r}; or name a group: "
                    + ", ".join(family.lora_targets),
                )
            )
    if problems:
        raise ConfigError(list(problems))
    return [path for path in linears if any(fnmatchcase(path, pattern) for pattern in patterns)]


def narrowest_group(layers: Collection[str], family: Family) -> str:
    """The first of the family's groups that has all of these layers; the groups grow."""
    return next(
        group
        for group, patterns in family.lora_targets.items()
        if all(any(fnmatchcase(path, pattern) for pattern in patterns) for path in layers)
    )


def targeted_embedders(config: LoraConfig, family: Family) -> list[str]:
    """Those of the family's embedders that ``config.targets`` names."""
    patterns = _patterns(config, family)
    return [path for path in family.embedders if any(fnmatchcase(path, pattern) for pattern in patterns)]


def _patterns(config: LoraConfig, family: Family) -> tuple[str, ...]:
    return family.lora_targets[config.targets] if isinstance(config.targets, str) else tuple(config.targets)


def _is_linear(module: nn.Module) -> bool:
    """Plain linear layers and the quantised ones, which derive from them."""
    return isinstance(module, nn.Linear)
