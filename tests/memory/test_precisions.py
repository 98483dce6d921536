"""The embedded model with its base held in each precision, against the plain one in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import bitsandbytes as bnb
import numpy as np
import pytest
import torch
from torch import nn

from fluxtune.config.lora import LoraConfig
from fluxtune.config.memory import MemoryConfig
from fluxtune.config.model import ModelConfig
from fluxtune.config.schema import Config
from fluxtune.flux.base import Base, open_base
from fluxtune.flux.denoise import Request, generate
from fluxtune.flux.load import image_pipeline, load_transformer, load_vae
from fluxtune.lora.adapter import adapter_parameters, attach
from fluxtune.memory.four_bit import FrozenLinear4bit
from fluxtune.memory.quantize import QUANTIZATIONS
from fluxtune.memory.row_wise import RowQuantizedLinear
from fluxtune.training.load import make_accelerator
from fluxtune.training.step import Learner, MicroBatch, clip, learn, update

every_precision = pytest.mark.parametrize("precision", QUANTIZATIONS)


@pytest.fixture(scope="module")
def base() -> Base:
    return open_base(ModelConfig(base="nano"))


def transformer_of(base: Base, precision: str) -> Any:
    """With an adapter on every layer that changes what it computes."""
    memory = MemoryConfig.model_validate({"base_precision": precision})
    transformer = load_transformer(base, memory, torch.float32, "cpu")
    attach(transformer, LoraConfig(rank=4, targets="all-linear"), base.family, 1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in adapter_parameters(transformer).items():
        if name.endswith(".lora_B"):
            parameter.data = 0.01 * torch.randn(parameter.shape, generator=generator)
    return transformer.train()


def batch() -> MicroBatch:
    generator = torch.Generator().manual_seed(3)
    latents, noise = (torch.randn(2, 64, 8, 8, generator=generator) for _ in range(2))
    text = {
        "prompt_embeds": torch.randn(2, 16, 128, generator=generator),
        "pooled_prompt_embeds": torch.randn(2, 64, generator=generator),
    }
    return MicroBatch(latents, noise, torch.tensor([0.3, 0.8]), text)


FLOAT32 = {"training": {"precision": "fp32"}, "memory": {"base_precision": "fp32"}}


@dataclass(frozen=True)
class Pass:
    """What a step computes: the loss, the gradient of the noisy latents, and of each adapter weight."""

    loss: float
    inputs: torch.Tensor
    adapter: dict[str, torch.Tensor]


def learner_of(base: Base, transformer: Any, learning_rate: float = 1e-2) -> Learner:
    parameters = list(adapter_parameters(transformer).values())
    accelerator = make_accelerator(Config.model_validate(FLOAT32), "cpu")
    optimizer = accelerator.prepare_optimizer(torch.optim.SGD(parameters, lr=learning_rate))
    return Learner(base.family, transformer, optimizer, accelerator, parameters, torch.float32, 1.0, 0.0)


def passed(base: Base, transformer: Any) -> Pass:
    samples = batch()
    samples.noise.requires_grad_(True)
    loss = learn(learner_of(base, transformer), samples)
    gradients = {
        name: parameter.grad
        for name, parameter in adapter_parameters(transformer).items()
        if parameter.grad is not None
    }
    assert samples.noise.grad is not None
    return Pass(float(loss), samples.noise.grad, gradients)


def difference(seen: Pass, expected: Pass) -> dict[str, float]:
    """Relative, of each kind of gradient taken together."""
    assert set(seen.adapter) == set(expected.adapter)
    one, other = (torch.cat([each.flatten() for each in some.adapter.values()]) for some in (seen, expected))
    return {
        "loss": abs(seen.loss - expected.loss) / expected.loss,
        "inputs": float((seen.inputs - expected.inputs).norm() / expected.inputs.norm()),
        "adapter": float((one - other).norm() / other.norm()),
    }


@pytest.fixture(scope="module")
def plain(base: Base) -> Pass:
    return passed(base, transformer_of(base, "fp32"))


def unpacked(layer: nn.Module) -> torch.Tensor:
    """The weight that a quantised layer stands for."""
    if isinstance(layer, RowQuantizedLinear):
        return layer.unpacked(torch.float32)
    if isinstance(layer, FrozenLinear4bit):
        return layer.unpacked(torch.float32)
    if isinstance(layer, bnb.nn.Linear4bit):
        return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert isinstance(layer, bnb.nn.Linear8bitLt)
    return layer.weight.data.float() * layer.weight.SCB[:, None] / 127


@every_precision
def test_gradients_are_those_of_plain_layers_with_the_same_weights(base: Base, precision: str) -> None:
    transformer = transformer_of(base, precision)
    same = transformer_of(base, "fp32")
    for path, layer in same.named_modules():
        if type(layer) is nn.Linear and ".base_layer" in path:
            held = transformer.get_submodule(path)
            if type(held) is not nn.Linear:
                layer.weight.data = unpacked(held)
    assert max(difference(passed(base, transformer), passed(base, same)).values()) < 1e-5


TOLERANCES = {"int8-weights": 0.03, "int8": 0.03, "fp8": 0.1, "nf4": 0.55}
"""Of gradients, relative. Texts of noise move the model further than captions do."""
PIXELS = {"int8-weights": 0.02, "int8": 0.02, "fp8": 0.03, "nf4": 0.1}
"""Mean difference of pixels, of [0, 1]."""


@every_precision
def test_gradients_are_near_those_of_the_plain_model(base: Base, plain: Pass, precision: str) -> None:
    seen = difference(passed(base, transformer_of(base, precision)), plain)
    assert 0 < max(seen.values()) < TOLERANCES[precision]


@every_precision
def test_a_step_goes_down_the_loss_of_the_plain_model_too(base: Base, plain: Pass, precision: str) -> None:
    transformer, own = transformer_of(base, precision), transformer_of(base, "fp32")
    learner = learner_of(base, transformer, learning_rate=0.05)
    learn(learner, batch())
    clip(learner)
    update(learner)
    for name, parameter in adapter_parameters(own).items():
        parameter.data = adapter_parameters(transformer)[name].data
    assert passed(base, own).loss < plain.loss


@every_precision
def test_recomputed_blocks_have_the_same_gradients(base: Base, precision: str) -> None:
    transformer = transformer_of(base, precision)
    kept = passed(base, transformer)
    again = transformer_of(base, precision)
    again.enable_gradient_checkpointing()
    assert max(difference(passed(base, again), kept).values()) == 0


@pytest.fixture(scope="module")
def vae(base: Base) -> Any:
    return load_vae(base, torch.float32, "cpu")


def picture(base: Base, vae: Any, precision: str) -> np.ndarray:
    memory = MemoryConfig.model_validate({"base_precision": precision})
    pipeline = image_pipeline(base, load_transformer(base, memory, torch.float32, "cpu"), vae)
    text = {name: tensor[:1] for name, tensor in batch().text.items()}
    made = generate(base, pipeline, text, Request("", 128, 128, 4, 3.5, 1))
    return np.asarray(made, dtype=np.float32) / 255


@pytest.fixture(scope="module")
def plain_picture(base: Base, vae: Any) -> np.ndarray:
    return picture(base, vae, "fp32")


@every_precision
def test_pictures_are_near_those_of_the_plain_model(
    base: Base, vae: Any, plain_picture: np.ndarray, precision: str
) -> None:
    made = picture(base, vae, precision)
    assert 0 < float(np.abs(made - plain_picture).mean()) < PIXELS[precision]
