from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import bitsandbytes as bnb
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fluxtune.config.memory import MemoryConfig, Precision
from fluxtune.memory.eight_bit import FrozenLinear8bit
from fluxtune.memory.four_bit import FrozenLinear4bit
from fluxtune.memory.ledger import Ledger
from fluxtune.memory.quantize import (
    QUANTIZATIONS,
    QuantizedPrecision,
    packed_bytes,
    packed_linear,
    packed_tensors,
    quantized_linear,
)
from fluxtune.memory.row_wise import RowQuantizedLinear, quantize_rows

KINDS = {
    "int8": FrozenLinear8bit,
    "int8-weights": RowQuantizedLinear,
    "fp8": RowQuantizedLinear,
    "nf4": bnb.nn.Linear4bit,
}
GOLDEN = Path(__file__).parents[1] / "golden" / "torchao_rows.safetensors"
DTYPES = [torch.float32, torch.bfloat16]
ROWS, COLUMNS = 128, 256

every_precision = pytest.mark.parametrize("precision", KINDS)
row_wise = pytest.mark.parametrize("precision", ["int8-weights", "fp8"])


def layer_of(precision: QuantizedPrecision, dtype: torch.dtype, columns: int = COLUMNS) -> tuple[nn.Linear, nn.Module]:
    """A linear layer to 128 features, and the quantised one for it."""
    torch.manual_seed(0)
    layer = nn.Linear(columns, ROWS).to(dtype).requires_grad_(False)
    return layer, quantized_linear(layer, layer.weight.data, precision, dtype, "cpu")


def test_the_settings_offer_every_precision_that_there_is() -> None:
    assert set(get_args(Precision)) == {"fp32", "bf16", *QUANTIZATIONS, "auto"}
    assert set(get_args(QuantizedPrecision)) == set(QUANTIZATIONS) == set(KINDS)
    for name in ("base_precision", "text_precision"):
        assert MemoryConfig.model_fields[name].annotation == Precision


@every_precision
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_take_the_bytes_they_should(precision: QuantizedPrecision, dtype: torch.dtype) -> None:
    _, quantised = layer_of(precision, dtype)
    assert type(quantised) is KINDS[precision]
    assert quantised.weight.nbytes == ROWS * COLUMNS // (2 if precision == "nf4" else 1)
    told = QUANTIZATIONS[precision].bytes_a_weight * ROWS * COLUMNS
    assert quantised.weight.nbytes <= told < 1.04 * quantised.weight.nbytes


@pytest.mark.gpu
@every_precision
@pytest.mark.parametrize("source", ["cpu", "cuda"])
def test_weights_on_a_card_are_quantised_at_once(precision: QuantizedPrecision, source: str) -> None:
    layer = nn.Linear(COLUMNS, ROWS, dtype=torch.bfloat16)
    quantised = quantized_linear(layer, layer.weight.data.to(source), precision, torch.bfloat16, "cuda")
    assert quantised.weight.device.type == "cuda"
    assert quantised.weight.nbytes == ROWS * COLUMNS // (2 if precision == "nf4" else 1)


def test_a_weight_that_is_where_it_shall_be_is_quantised_all_the_same() -> None:
    layer, quantised = layer_of("int8", torch.float32)
    scales = layer.weight.abs().amax(dim=1)
    assert quantised.weight.dtype == torch.int8
    assert torch.allclose(quantised.weight.SCB, scales, rtol=1e-3)
    assert torch.allclose(quantised.weight * scales[:, None] / 127, layer.weight, atol=float(scales.max()) / 127)


def weights_of_all_sizes() -> torch.Tensor:
    """Rows from tiny to large, one of them of zeros."""
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))
    weight *= torch.logspace(-4, 3, ROWS)[:, None]
    weight[7] = 0
    return weight


def test_whole_numbers_are_within_half_a_step_of_the_weight() -> None:
    weight = weights_of_all_sizes()
    values, scales = quantize_rows(weight, "int8-weights")
    assert (values.dtype, scales.dtype, tuple(scales.shape)) == (torch.int8, torch.float32, (ROWS, 1))
    assert bool(((values * scales - weight).abs() <= 0.5001 * scales).all())


def test_float8_is_within_half_a_step_of_the_weight() -> None:
    weight = weights_of_all_sizes()
    values, scales = quantize_rows(weight, "fp8")
    assert (values.dtype, scales.dtype, tuple(scales.shape)) == (torch.float8_e4m3fn, torch.float32, (ROWS, 1))
    # Three binary digits behind the first one, down to steps of 2 ** -9 near zero.
    half_a_step = torch.maximum(weight.abs() * 2**-4, scales * 2**-10)
    assert bool(((values.float() * scales - weight).abs() <= 1.0001 * half_a_step).all())


@row_wise
def test_the_largest_weight_of_a_row_has_the_largest_value(precision: Any) -> None:
    weight = weights_of_all_sizes()
    values, _ = quantize_rows(weight, precision)
    largest = values.float().abs().amax(dim=1)
    assert set(largest.tolist()) <= ({448.0, 0.0} if precision == "fp8" else {127.0, 128.0, 0.0})


@row_wise
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_quantised_a_few_at_a_time_are_the_same(
    precision: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = weights_of_all_sizes().to(dtype)
    at_once = quantize_rows(weight, precision)
    monkeypatch.setattr("fluxtune.memory.row_wise._VALUES_AT_ONCE", 3 * COLUMNS)
    for part, whole in zip(quantize_rows(weight, precision), at_once, strict=True):
        assert torch.equal(part.view(torch.int8), whole.view(torch.int8))


@row_wise
def test_values_and_scales_are_those_of_torchao(precision: Any) -> None:
    """The file holds what torchao 0.18.0 made of its `weight`: `quantize_` with `Int8WeightOnlyConfig()` and with
    `Float8WeightOnlyConfig()`, then `qdata` and `scale` of the layer's weight."""
    golden = load_file(GOLDEN)
    values, scales = quantize_rows(golden["weight"], precision)
    assert torch.equal(values.view(torch.int8), golden[f"{precision}.qdata"].view(torch.int8))
    assert torch.equal(scales, golden[f"{precision}.scale"])


@row_wise
def test_a_row_of_zeros_stays_one(precision: Any) -> None:
    values, scales = quantize_rows(weights_of_all_sizes(), precision)
    assert bool((values[7].float() * scales[7] == 0).all())


def test_a_weight_that_is_float8_already_is_held_as_it_is() -> None:
    weight = torch.randn(ROWS, COLUMNS).to(torch.float8_e4m3fn)
    layer = nn.Linear(COLUMNS, ROWS)
    held = quantized_linear(layer, weight, "fp8", torch.float32, "cpu")
    assert isinstance(held, RowQuantizedLinear)
    assert torch.equal(held.unpacked(torch.float32), weight.float())


@every_precision
def test_activations_keep_the_precision_of_the_layer_after_a_float32_norm(precision: QuantizedPrecision) -> None:
    _, quantised = layer_of(precision, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert quantised(torch.randn(7, COLUMNS, dtype=torch.float32)).dtype == torch.bfloat16


@every_precision
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_and_gradients_are_near_those_of_the_whole_layer(
    precision: QuantizedPrecision, dtype: torch.dtype
) -> None:
    layer, quantised = layer_of(precision, dtype)
    inputs = torch.randn(2, 7, COLUMNS, dtype=dtype, requires_grad=True)
    direction = torch.randn(2, 7, ROWS, dtype=dtype)
    near = {"int8": 0.03, "int8-weights": 0.01, "fp8": 0.03, "nf4": 0.15}[precision]
    results = []
    for module in (layer, quantised):
        output = module(inputs)
        (gradient,) = torch.autograd.grad(output, inputs, direction)
        results.append((output.float(), gradient.float()))
    for seen, expected in zip(results[1], results[0], strict=True):
        assert 0 < (seen - expected).norm() / expected.norm() < near


@every_precision
def test_gradients_still_flow_after_a_picture_was_made(precision: QuantizedPrecision) -> None:
    layer, quantised = layer_of(precision, torch.float32)
    inputs = torch.randn(7, COLUMNS)
    quantised.eval()
    with torch.inference_mode():
        quantised(inputs)
    quantised.train()
    inputs.requires_grad_(True)
    quantised(inputs).sum().backward()
    expected = layer.weight.sum(0)
    assert inputs.grad is not None
    assert (inputs.grad[0] - expected).norm() / expected.norm() < 0.2


@every_precision
def test_the_bias_is_taken_over_as_it_is(precision: QuantizedPrecision) -> None:
    layer, quantised = layer_of(precision, torch.float32)
    assert torch.equal(quantised.bias, layer.bias)
    without = nn.Linear(COLUMNS, ROWS, bias=False)
    assert quantized_linear(without, without.weight.data, precision, torch.float32, "cpu").bias is None


@pytest.mark.parametrize("precision", get_args(QuantizedPrecision))
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layer_made_of_packed_tensors_computes_the_same_to_the_bit(
    precision: QuantizedPrecision, dtype: torch.dtype, tmp_path: Path
) -> None:
    layer, quantised = layer_of(precision, dtype)
    save_file(packed_tensors(quantised, precision), tmp_path / "packed.safetensors")
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
    inputs = torch.randn(2, 7, COLUMNS, dtype=dtype, requires_grad=True)
    direction = torch.randn(2, 7, ROWS, dtype=dtype)
    results = []
    for layer in (quantised, lambda x: bnb.nn.Linear8bitLt.forward(quantised, x)):
        output = layer(inputs.clone())
        results.append((output, *torch.autograd.grad(output, inputs, direction)))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("columns", [144, 160, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_4_bit_layers_whose_rows_are_not_whole_blocks_are_as_near_as_others(columns: int, dtype: torch.dtype) -> None:
    layer, quantised = layer_of("nf4", dtype, columns)
    assert type(quantised) is FrozenLinear4bit
    inputs = torch.randn(2, 7, columns, dtype=dtype, requires_grad=True)
    results = []
    for module in (layer, quantised):
        output = module(inputs)
        results.append((output, *torch.autograd.grad(output.sum(), inputs)))
    for seen, expected in zip(results[1], results[0], strict=True):
        assert 0 < (seen - expected).norm() / expected.norm() < 0.15


@pytest.mark.parametrize("dtype", DTYPES)
def test_4_bit_layers_of_rows_of_any_length_compute_what_bitsandbytes_does(dtype: torch.dtype) -> None:
    _, quantised = layer_of("nf4", dtype)
    ours = FrozenLinear4bit(COLUMNS, ROWS, compute_dtype=dtype, quant_type="nf4", device="meta")
    ours.weight, ours.bias = quantised.weight, quantised.bias
    inputs = torch.randn(2, 7, COLUMNS, dtype=dtype, requires_grad=True)
    results = []
    for layer in (quantised, ours):
        output = layer(inputs)
        results.append((output, *torch.autograd.grad(output.sum(), inputs)))
    for seen, expected in zip(*results, strict=True):
        assert torch.equal(seen, expected)


@every_precision
@pytest.mark.parametrize("columns", [256, 144])
def test_layers_keep_no_input_for_the_backward(precision: QuantizedPrecision, columns: int) -> None:
    _, quantised = layer_of(precision, torch.float32, columns)
    inputs = torch.randn(1000, columns, requires_grad=True)
    with Ledger("cpu", as_cuda=False) as ledger:
        output = quantised(inputs * 2)
        held = output + 1
    # Beside the two results there are the weights, which are small here; the input is not.
    assert ledger.moments[-1].bytes < output.nbytes + held.nbytes + 0.1 * inputs.nbytes
