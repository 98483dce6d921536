"""The true training step on fake tensors, against an independent record of what real runs allocate: the profiler's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import bitsandbytes as bnb
import diffusers
import pytest
import torch
from accelerate import init_empty_weights
from torch import nn
from torch.profiler import ProfilerActivity, profile

from fluxtune.config.schema import Config
from fluxtune.flux.families import FAMILIES
from fluxtune.lora.adapter import adapter_parameters, attach
from fluxtune.memory.ledger import TEMPORARIES, Ledger
from fluxtune.memory.quantize import is_quantized, quantized_linear, replace_module
from fluxtune.memory.simulate import fake_parameters, simulate
from fluxtune.memory.stand_ins import QuantizedStandIn
from fluxtune.training.load import make_accelerator
from fluxtune.training.optimizers import make_optimizer
from fluxtune.training.step import Learner, MicroBatch, learn, update

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Size:
    """Of a FLUX.1 model, of its pictures in tokens a side, and of its texts in tokens."""

    double: int
    single: int
    heads: int
    head: int
    rope: tuple[int, int, int]
    text_width: int
    pooled_width: int
    side: int
    text: int

    @property
    def model(self) -> dict[str, object]:
        """As the config of the transformer says it."""
        return {
            "patch_size": 1,
            "in_channels": 64,
            "num_layers": self.double,
            "num_single_layers": self.single,
            "attention_head_dim": self.head,
            "num_attention_heads": self.heads,
            "joint_attention_dim": self.text_width,
            "pooled_projection_dim": self.pooled_width,
            "guidance_embeds": True,
            "axes_dims_rope": list(self.rope),
        }


SMALL = Size(2, 3, 4, 64, (8, 28, 28), 256, 128, side=16, text=64)
"""8 M parameters."""
DEV = Size(19, 38, 24, 128, (16, 56, 56), 4096, 768, side=64, text=512)
"""FLUX.1-dev at 1024 px: 11.9 billion."""


def empty_transformer(size: Size, config: Config, quantized: Callable[[nn.Linear], nn.Module] | None) -> nn.Module:
    """On the meta device, the linear layers of its blocks as they are held, with its adapter."""
    with init_empty_weights():
        transformer = diffusers.FluxTransformer2DModel.from_config(size.model)
        transformer.requires_grad_(False)
    for path, layer in list(transformer.named_modules()):
        if quantized and type(layer) is nn.Linear and "transformer_blocks." in path:
            replace_module(transformer, path, quantized(layer))
    with init_empty_weights():
        attach(transformer, config.lora, FAMILIES[0], 1)
    return transformer


def stand_in(config: Config, as_cuda: bool) -> Callable[[nn.Linear], nn.Module] | None:
    precision = config.memory.base_precision
    if not is_quantized(precision):
        return None
    return lambda layer: QuantizedStandIn(layer, precision, DTYPES[config.training.precision], as_cuda)


def real_layer(config: Config) -> Callable[[nn.Linear], nn.Module] | None:
    precision, dtype = config.memory.base_precision, DTYPES[config.training.precision]
    if not is_quantized(precision):
        return None

    def quantized(layer: nn.Linear) -> nn.Module:
        if layer.bias is not None:
            layer.bias = nn.Parameter(torch.zeros(layer.out_features, dtype=dtype), requires_grad=False)
        return quantized_linear(layer, torch.randn(layer.weight.shape), precision, dtype, "cpu")

    return quantized


def dtype_of(config: Config, parameter: nn.Parameter) -> torch.dtype:
    return torch.float32 if parameter.requires_grad else DTYPES[config.training.precision]


def learner_of(transformer: nn.Module, config: Config) -> Learner:
    if config.memory.recompute == "all":
        transformer.enable_gradient_checkpointing()
    transformer.train()
    parameters = list(adapter_parameters(transformer).values())
    accelerator = make_accelerator(config.training, "cpu")
    optimizer = accelerator.prepare_optimizer(make_optimizer(parameters, config.training))
    dtype = DTYPES[config.training.precision]
    return Learner(FAMILIES[0], transformer, optimizer, accelerator, parameters, dtype, 1.0, 1.0)


def batch(size: Size, number: int) -> MicroBatch:
    text = {
        "prompt_embeds": torch.zeros(number, size.text, size.text_width),
        "pooled_prompt_embeds": torch.zeros(number, size.pooled_width),
    }
    latents, noise = (torch.zeros(number, 64, size.side, size.side) for _ in range(2))
    return MicroBatch(latents, noise, torch.full([number], 0.5), text)


def tensors_of(samples: MicroBatch) -> list[torch.Tensor]:
    return [samples.latents, samples.noise, samples.sigmas, *samples.text.values()]


def simulated(config: Config, size: Size = SMALL, as_cuda: bool = False) -> Ledger:
    transformer = empty_transformer(size, config, stand_in(config, as_cuda))

    def build(ledger: Ledger) -> tuple[Learner, MicroBatch]:
        for tensor in fake_parameters(transformer, "cpu", lambda _, each: dtype_of(config, each)):
            ledger.claim(tensor, "adapter" if tensor.requires_grad else "weights")
        samples = batch(size, config.training.batch_size)
        for tensor in tensors_of(samples):
            ledger.claim(tensor, "inputs")
        return learner_of(transformer, config), samples

    def step(work: tuple[Learner, MicroBatch], ledger: Ledger) -> None:
        with ledger.phase("step"):
            learn(*work)
            update(work[0])

    return simulate(build, step, Ledger("cpu", as_cuda))


def states_of(transformer: nn.Module) -> list[torch.Tensor]:
    """What quantised layers hold besides their weights."""
    found = list(transformer.buffers())
    for layer in transformer.modules():
        if isinstance(layer, bnb.nn.Linear8bitLt):
            found.append(layer.weight.SCB)
        elif isinstance(layer, bnb.nn.Linear4bit):
            state = layer.weight.quant_state
            found += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    return list({id(tensor): tensor for tensor in found}.values())


def recorded_peak(config: Config, trace: Path) -> int:
    """Bytes at the peak of two real steps, by the profiler's record of every allocation."""
    transformer = empty_transformer(SMALL, config, real_layer(config))
    for name, parameter in list(transformer.named_parameters()):
        if not parameter.is_meta:
            continue
        path, _, leaf = name.rpartition(".")
        real = nn.Parameter(torch.zeros(parameter.shape, dtype=dtype_of(config, parameter)), parameter.requires_grad)
        setattr(transformer.get_submodule(path), leaf, real)
    learner, samples = learner_of(transformer, config), batch(SMALL, config.training.batch_size)
    held = [*transformer.parameters(), *states_of(transformer), *tensors_of(samples)]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        for _ in range(2):
            learn(learner, samples)
            update(learner)
    record.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    now = peak = sum(tensor.nbytes for tensor in held)
    for event in sorted(events, key=lambda each: each["ts"]):
        now += event["args"]["Bytes"]
        peak = max(peak, now)
    assert len(events) > 1000
    return peak


@pytest.mark.parametrize(
    ("precision", "base", "recompute", "targets"),
    [
        ("fp32", "fp32", "none", "all-linear"),
        ("fp32", "fp32", "all", "attention"),
        ("bf16", "bf16", "none", "attention"),
        ("bf16", "bf16", "all", "all-linear"),
        ("fp32", "nf4", "none", "attention"),
        ("fp32", "nf4", "all", "all-linear"),
        ("fp32", "int8", "none", "all-linear"),
        ("fp32", "int8", "all", "attention"),
        ("fp32", "fp8", "none", "attention"),
        ("fp32", "int8-weights", "all", "all-linear"),
    ],
)
def test_the_peak_of_a_training_step_is_foretold_within_one_percent(
    precision: str, base: str, recompute: str, targets: str, tmp_path: Path
) -> None:
    config = Config.model_validate(
        {
            "training": {"precision": precision, "optimizer": "adamw", "batch_size": 2},
            "memory": {"recompute": recompute, "base_precision": base},
            "lora": {"rank": 16, "targets": targets},
        }
    )
    assert simulated(config).peak.bytes == pytest.approx(recorded_peak(config, tmp_path / "trace.json"), rel=0.01)


def test_recomputing_holds_less_and_the_same_weights() -> None:
    settings = {"training": {"precision": "fp32", "optimizer": "adamw"}}
    plans = {
        recompute: simulated(Config.model_validate({**settings, "memory": {"recompute": recompute}}))
        for recompute in ("none", "all")
    }
    none, everything = plans["none"].peak, plans["all"].peak
    assert everything.alive[TEMPORARIES] < 0.6 * none.alive[TEMPORARIES]
    assert everything.alive["weights"] == none.alive["weights"]


@pytest.mark.slow
@pytest.mark.parametrize(("base", "gib"), [("bf16", 24.8), ("int8", 13.9), ("fp8", 13.8), ("nf4", 8.5)])
def test_the_whole_of_flux_takes_so_much_with_every_block_recomputed(base: str, gib: float) -> None:
    config = Config.model_validate(
        {
            "training": {"precision": "bf16", "optimizer": "adamw"},
            "memory": {"recompute": "all", "base_precision": base},
            "lora": {"rank": 16, "targets": "attention"},
        }
    )
    ledger = simulated(config, DEV, as_cuda=True)
    print(f"{base}: {ledger.peak.bytes / 2**30:.2f} GiB, reserved {ledger.reserved / 2**30:.2f} GiB, {ledger.peak}")
    assert ledger.peak.bytes / 2**30 == pytest.approx(gib, abs=0.1)
