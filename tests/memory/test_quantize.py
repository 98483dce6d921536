from __future__ import annotations

from pathlib import Path
from typing import get_args

import bitsandbytes as bnb
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fluxtune.memory.eight_bit import FrozenLinear8bit
from fluxtune.memory.ledger import Ledger
from fluxtune.memory.quantize import (
    QuantizedPrecision,
    packed_bytes,
    packed_linear,
    packed_tensors,
    quantized_linear,
)

KINDS = {"int8": FrozenLinear8bit, "nf4": bnb.nn.Linear4bit}
DTYPES = [torch.float32, torch.bfloat16]
VALUES = 128 * 256


def layer_of(precision: QuantizedPrecision, dtype: torch.dtype) -> tuple[nn.Linear, nn.Module]:
    """A linear layer of 256 to 128 features, and the quantised one for it."""
    torch.manual_seed(0)
    layer = nn.Linear(256, 128).to(dtype).requires_grad_(False)
    return layer, quantized_linear(layer, layer.weight.data, precision, dtype, "cpu")


@pytest.mark.parametrize(("precision", "size"), [("int8", VALUES), ("nf4", VALUES // 2)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_take_the_bytes_they_should(precision: QuantizedPrecision, size: int, dtype: torch.dtype) -> None:
    _, quantised = layer_of(precision, dtype)
    assert type(quantised) is KINDS[precision]
    assert quantised.weight.nbytes == size


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "size"), [("int8", VALUES), ("nf4", VALUES // 2)])
@pytest.mark.parametrize("source", ["cpu", "cuda"])
def test_weights_on_a_card_are_quantised_at_once(precision: QuantizedPrecision, size: int, source: str) -> None:
    layer = nn.Linear(256, 128, dtype=torch.bfloat16)
    quantised = quantized_linear(layer, layer.weight.data.to(source), precision, torch.bfloat16, "cuda")
    assert quantised.weight.device.type == "cuda"
    assert quantised.weight.nbytes == size


def test_a_weight_that_is_where_it_shall_be_is_quantised_all_the_same() -> None:
    layer, quantised = layer_of("int8", torch.float32)
    scales = layer.weight.abs().amax(dim=1)
    assert quantised.weight.dtype == torch.int8
    assert torch.allclose(quantised.weight.SCB, scales, rtol=1e-3)
    assert torch.allclose(quantised.weight * scales[:, None] / 127, layer.weight, atol=float(scales.max()) / 127)


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_activations_keep_the_precision_of_the_layer_after_a_float32_norm(precision: QuantizedPrecision) -> None:
    _, quantised = layer_of(precision, torch.bfloat16)
    assert quantised(torch.randn(7, 256, dtype=torch.float32)).dtype == torch.bfloat16


@pytest.mark.parametrize("precision", ["int8", "nf4"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_and_gradients_are_near_those_of_the_whole_layer(
    precision: QuantizedPrecision, dtype: torch.dtype
) -> None:
    layer, quantised = layer_of(precision, dtype)
    inputs = torch.randn(7, 256, dtype=dtype, requires_grad=True)
    direction = torch.randn(7, 128, dtype=dtype)
    near = {"int8": 0.03, "nf4": 0.15}[precision]
    results = []
    for module in (layer, quantised):
        output = module(inputs)
        (gradient,) = torch.autograd.grad(output, inputs, direction)
        results.append((output.float(), gradient.float()))
    for seen, expected in zip(results[1], results[0], strict=True):
        assert 0 < (seen - expected).norm() / expected.norm() < near


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_gradients_still_flow_after_a_picture_was_made(precision: QuantizedPrecision) -> None:
    layer, quantised = layer_of(precision, torch.float32)
    inputs = torch.randn(7, 256)
    quantised.eval()
    with torch.inference_mode():
        quantised(inputs)
    quantised.train()
    inputs.requires_grad_(True)
    quantised(inputs).sum().backward()
    expected = layer.weight.sum(0)
    assert inputs.grad is not None
    assert (inputs.grad[0] - expected).norm() / expected.norm() < 0.2


def test_the_bias_is_taken_over_as_it_is() -> None:
    layer, quantised = layer_of("nf4", torch.float32)
    assert torch.equal(quantised.bias, layer.bias)
    without = nn.Linear(256, 128, bias=False)
    assert quantized_linear(without, without.weight.data, "nf4", torch.float32, "cpu").bias is None


@pytest.mark.parametrize("precision", get_args(QuantizedPrecision))
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layer_made_of_packed_tensors_computes_the_same_to_the_bit(
    precision: QuantizedPrecision, dtype: torch.dtype, tmp_path: Path
) -> None:
    layer, quantised = layer_of(precision, dtype)
    save_file(packed_tensors(quantised), tmp_path / "packed.safetensors")
    packed = load_file(tmp_path / "packed.safetensors")
    assert sum(each.nbytes for each in packed.values()) == pytest.approx(packed_bytes(layer, precision), rel=0.15)
    again = packed_linear(layer, packed, precision, dtype, "cpu")
    inputs = torch.randn(7, 256, dtype=dtype, requires_grad=True)
    outputs = [module(inputs) for module in (quantised, again)]
    assert torch.equal(*outputs)
    assert torch.equal(*(torch.autograd.grad(output.sum(), inputs)[0] for output in outputs))


@pytest.mark.parametrize("dtype", DTYPES)
def test_frozen_8_bit_layers_compute_what_bitsandbytes_does_to_the_bit(dtype: torch.dtype) -> None:
    _, quantised = layer_of("int8", dtype)
    inputs = torch.randn(2, 7, 256, dtype=dtype, requires_grad=True)
    direction = torch.randn(2, 7, 128, dtype=dtype)
    results = []
    for layer in (quantised, lambda x: bnb.nn.Linear8bitLt.forward(quantised, x)):
        output = layer(inputs.clone())
        results.append((output, *torch.autograd.grad(output, inputs, direction)))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_frozen_8_bit_layers_keep_no_input_for_the_backward() -> None:
    _, quantised = layer_of("int8", torch.float32)
    inputs = torch.randn(1000, 256, requires_grad=True)
    with Ledger("cpu", as_cuda=False) as ledger:
        output = quantised(inputs * 2)
        held = output + 1
    # Beside the two results there are the weights, which are small here; the input is not.
    assert ledger.moments[-1].bytes < output.nbytes + held.nbytes + 0.1 * inputs.nbytes
