"""Muon (Jordan et al., 2024): momentum whose matrices are made orthogonal by a Newton-Schulz iteration."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from fluxtune.recipes.nano.progress import COMPUTE
from fluxtune.recipes.nano.workers import rank, sum_, world


class Muon(Optimizer):
    """For weights of two or more dimensions; a convolution is seen as the matrix [out, in x height x width].

    The update is scaled to the root mean square that AdamW's has (Liu et al., 2025, arXiv 2502.16982), so that
    both share one learning rate and weight decay.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        learning_rate: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": learning_rate, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            updates: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                nesterov = parameter.grad.lerp(momentum, group["momentum"]).flatten(1)
                updates.setdefault(nesterov.shape, []).append((parameter, nesterov))
            self._orthogonalize(list(updates.values()))
            for shape, pairs in updates.items():
                scale = 0.2 * max(shape) ** 0.5
                for parameter, matrix in pairs:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(matrix.view_as(parameter), alpha=-group["lr"] * scale)

    def _orthogonalize(self, shapes: list[list[tuple[Tensor, Tensor]]]) -> None:
        """Every process makes its share of the matrices orthogonal, in place, then all exchange them."""
        for pairs in shapes:
            mine = [matrix for _, matrix in pairs[rank() :: world()]]
            if mine:
                for matrix, orthogonal in zip(mine, orthogonalize(torch.stack(mine)), strict=True):
                    matrix.copy_(orthogonal)
            for index, (_, matrix) in enumerate(pairs):
                if index % world() != rank():
                    matrix.zero_()
        sum_(matrix for pairs in shapes for _, matrix in pairs)


def orthogonalize(matrices: Tensor, iterations: int = 4) -> Tensor:
    """`[matrices, rows, columns]` with the singular values brought near 1 by a quintic iteration."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).to(COMPUTE)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)
