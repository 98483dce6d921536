"""Frozen linear layers held in 8 or 4 bits, through bitsandbytes.

Only weights are quantised; biases and everything that is not a linear layer keep the precision of the computation.
Knows layers, not FLUX: the caller says which layers.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

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

    has_bias = layer.bias is not None
    source = weight.to(device=device, dtype=dtype).contiguous()
    if precision == "nf4":
        made = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=has_bias, compute_dtype=dtype, quant_type="nf4", device="meta"
        )
        # The packed bytes are labelled with the precision of the products: T5 casts its activations to the type
        # that a weight claims, and would round them to bytes.
        made.weight = bnb.nn.Params4bit(source, requires_grad=False, quant_type="nf4", quant_storage=dtype, module=made)
        made.quant_state = None
        # On some processors bitsandbytes repacks weights at the first evaluation into a form without gradients.
        made.support_avx512bf16_for_cpu = False
    else:
        from fluxtune.memory.eight_bit import FrozenLinear8bit

        made = FrozenLinear8bit(
            layer.in_features, layer.out_features, bias=has_bias, has_fp16_weights=False, threshold=0.0, device="meta"
        )
        # Int8Params quantises only what moves from the CPU to a card, and would hold what is on the card whole.
        rows, scales, _ = bnb.functional.int8_vectorwise_quant(source.to(torch.float16))
        made.weight = bnb.nn.Int8Params(rows, requires_grad=False, has_fp16_weights=False, CB=rows, SCB=scales)
    if has_bias:
        made.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    made.weight = made.weight.to(device)
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


def quantize_linears(
    root: nn.Module, precision: QuantizedPrecision, dtype: torch.dtype, device: str, keep: tuple[str, ...] = ()
) -> None:
    """Quantise every linear layer below ``root`` in place, one at a time, so that both copies never coexist.

    Args:
        keep: names of layers (the last part of their path) that stay as they are.
    """
    paths = [path for path, module in root.named_modules() if type(module) is nn.Linear]
    for path in paths:
        if path.rpartition(".")[2] in keep:
            continue
        layer = root.get_submodule(path)
        assert isinstance(layer, nn.Linear)
        replace_module(root, path, quantized_linear(layer, layer.weight.data, precision, dtype, device))
