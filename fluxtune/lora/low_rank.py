"""Low-rank mathematics of LoRA layers: their size, their distance, and the nearest layer of a lower rank.

The change of a layer, ``scale * B @ A [out, in]``, is never formed: its singular values are those of the small core
``R_b R_a^T`` of the QR decompositions of B and of A transposed (Golub and Van Loan, Matrix Computations, 5.2 and 2.4).
"""

from __future__ import annotations

import math

import torch

from fluxtune.lora.adapter import LoraLayer


def rank_of(layer: LoraLayer) -> int:
    """Rows of A."""
    return int(layer.a.shape[0])


def norm_of(layer: LoraLayer) -> float:
    """Frobenius norm of the layer's change."""
    a, b = layer.a.double(), layer.b.double()
    squared = float(((b.T @ b) * (a @ a.T)).sum())
    return abs(layer.scale) * math.sqrt(max(squared, 0.0))


def distance(first: LoraLayer, second: LoraLayer) -> float:
    """Frobenius norm of the difference of two layers' changes, as a share of the first one's norm.

    Raises:
        ValueError: their changes have different shapes.
    """
    shapes = [(each.b.shape[0], each.a.shape[1]) for each in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"shapes {shapes[0]} and {shapes[1]}")
    norm = norm_of(first)
    apart = norm_of(summed([(first, 1.0), (second, -1.0)]))
    return apart / norm if norm else apart


def summed(layers: list[tuple[LoraLayer, float]]) -> LoraLayer:
    """The layer whose change is the weighted sum of others' changes, exactly: their factors one after the other."""
    a = torch.cat([layer.a.double() for layer, _ in layers])
    b = torch.cat([layer.b.double() * (layer.scale * weight) for layer, weight in layers], dim=1)
    return LoraLayer(a, b, 1.0)


def singular_values(layer: LoraLayer) -> torch.Tensor:
    """Those of the layer's change, in float64, the largest first; as many as its rank."""
    return _decomposed(layer)[1]


def compressed(layer: LoraLayer, rank: int | None = None, error: float = 0.0) -> tuple[LoraLayer, float]:
    """The nearest layer of a lower rank (Eckart and Young): scale 1, A and B of equal size, float32.

    Args:
        rank: at most this; None for no limit.
        error: relative Frobenius error that is allowed: the smallest rank that stays within it, and within ``rank``.

    Returns:
        The layer, and the relative error it was made with.
    """
    u, values, v = _decomposed(layer)
    total = float(values.square().sum())
    if total == 0.0:
        return LoraLayer(layer.a[:1].float(), torch.zeros_like(layer.b[:, :1], dtype=torch.float32), 1.0), 0.0
    # What is lost with each rank: of rank 0 everything.
    lost = torch.cat([values.square().flip(0).cumsum(0).flip(0), values.new_zeros(1)])
    enough = int((lost <= (error**2) * total + torch.finfo(values.dtype).eps * total).nonzero()[0])
    kept = max(1, min(enough, rank or enough, len(values)))
    root = values[:kept].sqrt()
    a, b = (root[:, None] * v[:, :kept].T), u[:, :kept] * root
    return LoraLayer(a.float().contiguous(), b.float().contiguous(), 1.0), math.sqrt(float(lost[kept]) / total)


def factors_of(change: torch.Tensor, rank: int) -> tuple[LoraLayer, float]:
    """The nearest layer of a rank to a full change ``[out, in]``, by a randomised decomposition (arXiv 0909.4061).

    Returns:
        The layer with scale 1, and its relative Frobenius error.
    """
    total = float(change.double().square().sum())
    if total == 0.0:
        return LoraLayer(change.new_zeros(1, change.shape[1]), change.new_zeros(change.shape[0], 1), 1.0), 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wanted = min(rank + 16, *change.shape)
        u, values, v = torch.svd_lowrank(change.float(), q=wanted, niter=4)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    layer = LoraLayer((root[:, None] * v[:, :kept].T).contiguous(), (u[:, :kept] * root).contiguous(), 1.0)
    left = float((change.float() - layer.b @ layer.a).double().square().sum())
    return layer, math.sqrt(left / total)


def kronecker(first: torch.Tensor, second: torch.Tensor, max_rank: int) -> tuple[LoraLayer, torch.Tensor]:
    """The Kronecker product of two matrices as a layer, cut down to a rank where its own is higher.

    Its singular values are all products of theirs (Horn and Johnson, Topics in Matrix Analysis, 4.2.15).

    Returns:
        The layer with scale 1, and of each row ``[out]`` the square of what was cut off. What a further cut takes off
        is orthogonal to that.
    """
    (u1, s1, v1), (u2, s2, v2) = (torch.linalg.svd(each.double(), full_matrices=False) for each in (first, second))
    values = torch.outer(s1, s2).flatten()
    tiny = float(values.max()) * torch.finfo(torch.float32).eps * 1e-3
    kept = max(1, min(max_rank, int((values > tiny).sum())))
    chosen = values.argsort(descending=True)[:kept]
    one, two, root = chosen // len(s2), chosen % len(s2), values[chosen].sqrt()
    b = (u1[:, None, one] * u2[None, :, two]).flatten(0, 1) * root
    a = (v1[one, :, None] * v2[two, None, :]).flatten(1) * root[:, None]
    rows = torch.kron(*(each.double().square().sum(dim=1) for each in (first, second)))
    lost = (rows - (b * root).square().sum(dim=1)).clamp(min=0.0) if kept == max_rank else torch.zeros_like(rows)
    return LoraLayer(a.float().contiguous(), b.float().contiguous(), 1.0), lost


def _decomposed(layer: LoraLayer) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Singular value decomposition of the change: ``u [out, r]``, ``values [r]``, ``v [in, r]``, in float64."""
    q_b, r_b = torch.linalg.qr(layer.b.double() * layer.scale)
    q_a, r_a = torch.linalg.qr(layer.a.double().T)
    u, values, v = torch.linalg.svd(r_b @ r_a.T)
    kept = len(values)
    return q_b @ u[:, :kept], values, q_a @ v[:kept].T
