"""Frozen linear layers held in 8 or 4 bits, through bitsandbytes.

Only weights are quantised; biases and everything that is not a linear layer keep the precision of the computation.
Knows layers, not FLUX: the caller says which layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import metadata
from typing import Any, Literal

import torch
from torch import nn

QuantizedPrecision = Literal["int8", "nf4"]


def quantized_linear(
    layer: nn.Linear, weight: torch.Tensor, precision: QuantizedPrecision, dtype: torch.dtype, device: str
) -> nn.Module:
    """A bitsandbytes layer that computes what ``layer`` would with ``weight``.

    Args:
        layer: the layer it stands for; its bias is taken over, its own weight (which may be on the meta device) is not.
        weight: ``[out, in]``, in any floating precision, quantised here from ``dtype``.
        precision: ``int8`` (LLM.int8(), arXiv 2208.07339, one scale a row) or ``nf4`` (arXiv 2305.14314, blocks of
            64 values, their scales quantised again).
        dtype: precision in which the layer takes and gives activations, and of its bias.
        device: where the quantised weight lives; it is quantised there.
    """
    import bitsandbytes as bnb

    source = weight.to(device=device, dtype=dtype).contiguous()
    made = _without_weight(layer, precision, dtype)
    if precision == "nf4":
        # The packed bytes are labelled with the precision of the products: T5 casts its activations to the type
        # that a weight claims, and would round them to bytes.
        made.weight = bnb.nn.Params4bit(source, requires_grad=False, quant_type="nf4", quant_storage=dtype, module=made)
    else:
        # Int8Params quantises only what moves from the CPU to a card, and would hold what is on the card whole.
        rows, scales, _ = bnb.functional.int8_vectorwise_quant(source.to(torch.float16))
        made.weight = bnb.nn.Int8Params(rows, requires_grad=False, has_fp16_weights=False, CB=rows, SCB=scales)
    made.weight = made.weight.to(device)
    return made


def packed_tensors(layer: nn.Module) -> dict[str, torch.Tensor]:
    """What a quantised layer that has not computed yet holds its weight in; ``packed_linear`` takes it."""
    import bitsandbytes as bnb

    weight: Any = layer.weight
    if isinstance(layer, bnb.nn.Linear4bit):
        return {"weight": weight.data, **weight.quant_state.as_dict(packed=True)}
    return {"weight": weight.data, "scales": weight.SCB}


def packed_linear(
    layer: nn.Linear, packed: Mapping[str, torch.Tensor], precision: QuantizedPrecision, dtype: torch.dtype, device: str
) -> nn.Module:
    """The layer that ``quantized_linear`` would make, to the bit, of what ``packed_tensors`` gave of one like it."""
    import bitsandbytes as bnb

    made = _without_weight(layer, precision, dtype)
    state = {name: tensor.to(device) for name, tensor in packed.items()}
    data = state.pop("weight")
    if precision == "nf4":
        made.weight = bnb.nn.Params4bit.from_prequantized(data, state, device=device, module=made)
    else:
        made.weight = bnb.nn.Int8Params(data, requires_grad=False, has_fp16_weights=False, CB=data, SCB=state["scales"])
    return made


def packed_bytes(layer: nn.Linear, precision: QuantizedPrecision) -> int:
    """Bytes of ``packed_tensors`` of such a layer, nearly."""
    values = layer.in_features * layer.out_features
    # Of 4 bits, a scale of 8 bits for each 64 values, and one of 32 for each 256 of those.
    return values * 65 // 128 if precision == "nf4" else values + 4 * layer.out_features


def made_by(precision: QuantizedPrecision) -> str:
    """The library that packs weights so, with its version: another one may pack them differently."""
    return f"bitsandbytes {metadata.version('bitsandbytes')}"


def _without_weight(layer: nn.Linear, precision: QuantizedPrecision, dtype: torch.dtype) -> Any:
    """The quantised layer in the place of ``layer``, with its bias."""
    import bitsandbytes as bnb

    has_bias = layer.bias is not None
    if precision == "nf4":
        made = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=has_bias, compute_dtype=dtype, quant_type="nf4", device="meta"
        )
        made.quant_state = None
        # On some processors bitsandbytes repacks weights at the first evaluation into a form without gradients.
        made.support_avx512bf16_for_cpu = False
    else:
        from fluxtune.memory.eight_bit import FrozenLinear8bit

        made = FrozenLinear8bit(
            layer.in_features, layer.out_features, bias=has_bias, has_fp16_weights=False, threshold=0.0, device="meta"
        )
    if has_bias:
        made.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    # Under autocast, norms hand on float32, and bitsandbytes answers in the precision that it is asked in: without
    # this, all activations of the model would be float32 from the first such layer on.
    made.register_forward_pre_hook(partial(_cast_input, dtype))
    return made


def _cast_input(dtype: torch.dtype, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (inputs[0].to(dtype), *inputs[1:])


def replace_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put ``module`` in the place of the sub-module ``path`` of ``root``."""
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)
