"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math

import torch

from fluxtune.config.training import TrainingConfig


def make_optimizer(parameters: list[torch.nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101), or bitsandbytes' AdamW with block-wise 8-bit state (arXiv 2110.02861)."""
    if config.optimizer == "adamw-8bit":
        import bitsandbytes as bnb

        optimizer: torch.optim.Optimizer = bnb.optim.AdamW8bit(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        return optimizer
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """The learning rate of optimizer step ``step`` (0 is the first), a pure function, so that resuming is exact."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    if config.schedule == "linear":
        return config.learning_rate * (1.0 - progress)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
