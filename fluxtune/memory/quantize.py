"""The precisions of 8 and 4 bits that frozen linear layers can be held in, and how a layer becomes one of them.

Only weights are quantised; biases and everything that is not a linear layer keep the precision of the computation.
Knows layers, not FLUX: the caller says which layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeGuard

import torch
from torch import nn

from fluxtune.memory.row_wise import RowPrecision, RowQuantizedLinear, quantize_rows

QuantizedPrecision = Literal["int8", "int8-weights", "fp8", "nf4"]

Make = Callable[[nn.Linear, torch.Tensor, torch.dtype, str], nn.Linear]


@dataclass(frozen=True)
class Quantization:
    """A way to hold weights.

    Attributes:
        make: (layer, weight, dtype, device) -> the layer with the quantised weight, without its bias.
        bytes_a_weight: with the scales of blocks; scales of rows are too few to count.
        float16_products: products pass through float16, whose range some layers exceed.
    """

    make: Make
    bytes_a_weight: float
    float16_products: bool = False


def quantized_linear(
    layer: nn.Linear, weight: torch.Tensor, precision: QuantizedPrecision, dtype: torch.dtype, device: str
) -> nn.Module:
    """A layer that computes what ``layer`` would with ``weight``, and keeps none of its inputs for the backward.

    Args:
        layer: the layer it stands for; its bias is taken over, its own weight (which may be on the meta device) is not.
        weight: ``[out, in]``, in any floating precision.
        precision: ``int8`` (LLM.int8(), arXiv 2208.07339, one scale a row, inputs rounded to 8 bits as well),
            ``int8-weights`` and ``fp8`` (one scale a row), or ``nf4`` (arXiv 2305.14314, blocks of 64 values, their
            scales quantised again).
        dtype: precision in which the layer takes and gives activations, and of its bias.
        device: where the quantised weight lives; it is quantised there.
    """
    made = QUANTIZATIONS[precision].make(layer, weight, dtype, device)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return made


def is_quantized(precision: str) -> TypeGuard[QuantizedPrecision]:
    """Whether weights held so are layers of their own kind, not tensors of fractions."""
    return precision in QUANTIZATIONS


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


def _make_nf4(layer: nn.Linear, weight: torch.Tensor, dtype: torch.dtype, device: str) -> nn.Linear:
    import bitsandbytes as bnb

    from fluxtune.memory.four_bit import BLOCK, FrozenLinear4bit

    whole_blocks = layer.in_features % BLOCK == 0
    made = (bnb.nn.Linear4bit if whole_blocks else FrozenLinear4bit)(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=dtype,
        quant_type="nf4",
        device="meta",
    )
    # The packed bytes are labelled with the precision of the products: T5 casts its activations to the type
    # that a weight claims, and would round them to bytes.
    source = weight.to(device=device, dtype=dtype).contiguous()
    packed = bnb.nn.Params4bit(source, requires_grad=False, quant_type="nf4", quant_storage=dtype, module=made)
    made.quant_state = None
    made.weight = packed.to(device)
    # On some processors bitsandbytes repacks weights at the first evaluation into a form without gradients.
    made.support_avx512bf16_for_cpu = False
    return _asked_in(dtype, made)


def _make_int8(layer: nn.Linear, weight: torch.Tensor, dtype: torch.dtype, device: str) -> nn.Linear:
    import bitsandbytes as bnb

    from fluxtune.memory.eight_bit import FrozenLinear8bit

    made = FrozenLinear8bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        has_fp16_weights=False,
        threshold=0.0,
        device="meta",
    )
    # Int8Params quantises only what moves from the CPU to a card, and would hold what is on the card whole.
    source = weight.to(device=device, dtype=torch.float16).contiguous()
    rows, scales, _ = bnb.functional.int8_vectorwise_quant(source)
    made.weight = bnb.nn.Int8Params(rows, requires_grad=False, has_fp16_weights=False, CB=rows, SCB=scales).to(device)
    return _asked_in(dtype, made)


def _asked_in(dtype: torch.dtype, layer: nn.Linear) -> nn.Linear:
    """Under autocast, norms hand on float32, and bitsandbytes answers in the precision that it is asked in: without
    this, all activations of the model would be float32 from the first such layer on."""
    layer.register_forward_pre_hook(partial(_cast_input, dtype))
    return layer


def _cast_input(dtype: torch.dtype, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (inputs[0].to(dtype), *inputs[1:])


def _make_row_wise(
    precision: RowPrecision, layer: nn.Linear, weight: torch.Tensor, dtype: torch.dtype, device: str
) -> nn.Linear:
    made = RowQuantizedLinear(layer.in_features, layer.out_features, layer.bias is not None, precision, dtype)
    made.hold(*quantize_rows(weight.to(device), precision))
    return made


QUANTIZATIONS: dict[str, Quantization] = {
    "int8-weights": Quantization(partial(_make_row_wise, "int8-weights"), 1.0),
    "int8": Quantization(_make_int8, 1.0, float16_products=True),
    "fp8": Quantization(partial(_make_row_wise, "fp8"), 1.0),
    "nf4": Quantization(_make_nf4, 0.5 + (1 + 4 / 256) / 64),
}
"""By the name that `memory.base_precision` has for it."""
