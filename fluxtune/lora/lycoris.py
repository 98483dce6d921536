"""LyCORIS' LoHa and LoKr as plain low-rank products (https://arxiv.org/abs/2108.06098, https://arxiv.org/abs/2309.14859).

Both are low-rank products themselves, of a rank that can be large; LoKr's is cut down as it is made. What tensors they
have, and how alpha counts: LyCORIS `modules/loha.py`, `modules/lokr.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.low_rank import kronecker
from fluxtune.lora.matrices import UnreadableLora, matrix

LOHA = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})
LOKR = frozenset({"lokr_w1", "lokr_w2"})
"""Both may also be given as the product of ``_a`` and ``_b``."""


def loha(name: str, roles: Mapping[str, torch.Tensor], alpha: float | None) -> LoraLayer:
    """``(W1a W1b) * (W2a W2b)``, element by element: each pair of a column and a row of both is one of the product.

    Raises:
        UnreadableLora: tensors do not fit together.
    """
    w1a, w1b, w2a, w2b = (matrix(name, roles[f"hada_{each}"]) for each in ("w1_a", "w1_b", "w2_a", "w2_b"))
    pairs = ((w1a, w1b), (w2a, w2b))
    if w1a.shape[0] != w2a.shape[0] or w1b.shape[1] != w2b.shape[1] or any(a.shape[1] != b.shape[0] for a, b in pairs):
        raise UnreadableLora(f"{name}: the two products of LoHa have different shapes")
    b = (w1a[:, :, None] * w2a[:, None, :]).flatten(1)
    a = (w1b[:, None, :] * w2b[None, :, :]).flatten(0, 1)
    return LoraLayer(a, b, 1.0 if alpha is None else alpha / w1b.shape[0])


def lokr(
    name: str, roles: Mapping[str, torch.Tensor], alpha: float | None, max_rank: int
) -> tuple[LoraLayer, torch.Tensor]:
    """``kron(W1, W2)``: the nearest product of at most ``max_rank``, and of each row the square of what that lost.

    Raises:
        UnreadableLora: tensors are missing, or do not fit together.
    """
    first, second = (_half(name, roles, each) for each in ("lokr_w1", "lokr_w2"))
    # Both given in full have no rank that an alpha could be relative to.
    ranks = [int(roles[each].shape[0]) for each in ("lokr_w2_b", "lokr_w1_b") if each in roles]
    scale = alpha / ranks[0] if alpha is not None and ranks else 1.0
    layer, lost = kronecker(first, second, max_rank)
    return LoraLayer(layer.a, layer.b, scale), lost * scale**2


def _half(name: str, roles: Mapping[str, torch.Tensor], which: str) -> torch.Tensor:
    """One factor as a matrix."""
    if which in roles:
        return matrix(name, roles[which])
    if {f"{which}_a", f"{which}_b"} - set(roles):
        raise UnreadableLora(f"{name}: half of {which} is missing")
    b, a = matrix(name, roles[f"{which}_a"]), matrix(name, roles[f"{which}_b"])
    if b.shape[1] != a.shape[0]:
        raise UnreadableLora(f"{name}: the halves of {which} have different ranks")
    return b @ a
