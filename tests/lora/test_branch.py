"""The adapter's layer against peft's own, and what it saves for the backward."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import nn

from fluxtune.lora.branch import AdaptedLinear
from fluxtune.memory.quantize import quantized_linear


def base_layer(precision: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.Linear(64, 96).to(dtype).requires_grad_(False)
    if precision in ("int8", "nf4"):
        return quantized_linear(layer, layer.weight.data, precision, dtype, "cpu")
    return layer


def adapted(kind: type[PeftLinear], base: nn.Module, dropout: float = 0.0) -> Any:
    """A trained adapter of rank 8 and scale 0.5, in float32."""
    config = peft.LoraConfig(r=8, lora_alpha=4, lora_dropout=dropout)
    layer = kind(base, "default", config=config, r=8, lora_alpha=4)
    torch.manual_seed(1)
    for weights in (layer.lora_A["default"], layer.lora_B["default"]):
        weights.weight.data = torch.randn(weights.weight.shape)
    return layer.train()


def run(layer: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """The output, and the gradients of input, A and B."""
    torch.manual_seed(2)
    given = x.clone().requires_grad_()
    result = layer(given)
    torch.manual_seed(3)
    result.backward(torch.randn(result.shape).to(result.dtype))
    return [result, given.grad, layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad]


@pytest.mark.parametrize("precision", ["fp32", "int8", "nf4"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_in_float32_it_computes_what_pefts_layer_does(precision: str, dropout: float) -> None:
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(4))
    layers = [adapted(kind, base_layer(precision, torch.float32), dropout) for kind in (AdaptedLinear, PeftLinear)]
    for seen, expected in zip(run(layers[0], x), run(layers[1], x), strict=True):
        assert torch.allclose(seen, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        assert expected.abs().max() > 0.1


def test_in_bfloat16_the_gradients_of_the_adapter_are_float32_and_near_those_of_float32() -> None:
    x = torch.randn(2, 500, 64, generator=torch.Generator().manual_seed(4)).bfloat16()
    exact = run(adapted(PeftLinear, base_layer("fp32", torch.float32)), x.float())
    seen = run(adapted(AdaptedLinear, base_layer("fp32", torch.bfloat16)), x)
    assert [each.dtype for each in seen] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    for one, other in zip(seen, exact, strict=True):
        assert float((one - other).norm() / other.norm()) < 0.01


@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
def test_layers_of_one_input_save_it_once_and_no_copy(precision: str) -> None:
    layers = [adapted(AdaptedLinear, base_layer(precision, torch.bfloat16), dropout) for dropout in (0.0, 0.0, 0.4)]
    x = torch.randn(1, 1000, 64).bfloat16().requires_grad_()
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        results = [layer(x) for layer in layers]
    assert len(results) == 3
    weights = {each.untyped_storage().data_ptr() for layer in layers for each in layer.parameters()}
    activations = sorted(size for place, size in saved.items() if place not in weights)
    assert activations == [1000 * 8 * 2] * 3 + [1000 * 64 * 2]


def test_an_adapter_that_is_turned_off_leaves_the_base_layer() -> None:
    base = base_layer("fp32", torch.float32)
    layer, x = adapted(AdaptedLinear, base), torch.randn(3, 64)
    assert not torch.allclose(layer(x), base(x))
    layer.enable_adapters(False)
    assert torch.equal(layer(x), base(x))


def test_without_gradients_it_rounds_as_pefts_layer_does() -> None:
    x = torch.randn(3, 64).bfloat16()
    layers = [adapted(kind, base_layer("bf16", torch.bfloat16)) for kind in (AdaptedLinear, PeftLinear)]
    with torch.no_grad():
        assert torch.equal(layers[0](x), layers[1](x))


def test_dropout_acts_in_training_alone() -> None:
    layer, x = adapted(AdaptedLinear, base_layer("fp32", torch.float32), 0.4), torch.randn(3, 64)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_the_backward_leaves_the_source_of_chance_where_it_was() -> None:
    layer, x = adapted(AdaptedLinear, base_layer("fp32", torch.float32), 0.4), torch.randn(3, 64, requires_grad=True)
    result = layer(x)
    before = torch.get_rng_state()
    result.sum().backward()
    assert torch.equal(torch.get_rng_state(), before)
