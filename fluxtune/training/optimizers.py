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


def missing_state(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the two moments of AdamW that the first step makes, of the parameters that have none yet.

    In 8 bits they have a float32 scale for every 256 values; tensors of fewer than 4096 values stay in float32.
    """
    in_8_bits = "8bit" in type(getattr(optimizer, "optimizer", optimizer)).__name__
    parameters = [each for group in optimizer.param_groups for each in group["params"] if each not in optimizer.state]
    return sum(
        2 * (each.numel() + 4 * -(-each.numel() // 256) if in_8_bits and each.numel() >= 4096 else 4 * each.numel())
        for each in parameters
    )


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
