from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lora_factory import trained

from fluxtune.config.lora import LoraConfig
from fluxtune.errors import ExitCode, UsageError
from fluxtune.flux.families import FLUX1
from fluxtune.lora.adapter import (
    LoraLayer,
    adapter_disabled,
    adapter_layers,
    adapter_parameters,
    as_saved,
    attach,
    scale_of,
    start_from,
)
from fluxtune.lora.files import folded_tensors

Velocity = Callable[[Any], torch.Tensor]
Fresh = Callable[[], Any]


def test_a_fresh_adapter_leaves_the_output_unchanged_to_the_bit(transformer: Any, velocity: Velocity) -> None:
    before = velocity(transformer)
    attach(transformer, LoraConfig(targets="all-linear"), FLUX1, seed=0)
    assert torch.equal(velocity(transformer), before)


def test_a_trained_adapter_adds_its_scaled_product_to_the_weights(transformer: Any, velocity: Velocity) -> None:
    layers = trained(transformer, alpha=2.0)
    adapted = velocity(transformer)
    weights = dict(transformer.named_parameters())
    with adapter_disabled(transformer), torch.no_grad():
        base = velocity(transformer)
        for path, layer in layers.items():
            weights[f"{path}.base_layer.weight"] += 2.0 / 4 * layer.b @ layer.a
        merged = velocity(transformer)
    assert torch.allclose(adapted, merged, atol=1e-5)
    assert not torch.allclose(adapted, base, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"rank": 8}, 1.0),
        ({"rank": 8, "alpha": 4.0}, 0.5),
        ({"rank": 16, "alpha": 8.0, "rank_stabilized": True}, 2.0),
        ({"rank": 16, "rank_stabilized": True}, 4.0),
    ],
)
def test_the_scale_is_alpha_over_the_rank_or_its_root(transformer: Any, settings: dict[str, Any], scale: float) -> None:
    config = LoraConfig(**settings)
    attach(transformer, config, FLUX1, seed=0)
    applied = {value for module in transformer.modules() for value in getattr(module, "scaling", {}).values()}
    assert scale_of(config) == scale
    assert applied == {scale}


def test_the_adapter_is_float32_and_alone_trained_under_a_bfloat16_base(transformer: Any) -> None:
    attach(transformer.to(torch.bfloat16), LoraConfig(), FLUX1, seed=0)
    trained_names = {name for name, parameter in transformer.named_parameters() if parameter.requires_grad}
    assert all(".lora_A." in name or ".lora_B." in name for name in trained_names)
    assert len(trained_names) == len(adapter_parameters(transformer))
    assert {parameter.dtype for parameter in adapter_parameters(transformer).values()} == {torch.float32}


def test_the_seed_alone_decides_the_first_weights(fresh: Fresh) -> None:
    weights = []
    for seed, disturbance in ((5, 1), (5, 2), (6, 2)):
        transformer = fresh()
        torch.manual_seed(disturbance)
        attach(transformer, LoraConfig(), FLUX1, seed)
        weights.append(adapter_parameters(transformer)["transformer_blocks.0.attn.to_q.lora_A"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_attaching_leaves_the_processs_random_numbers_alone(transformer: Any) -> None:
    before = torch.get_rng_state()
    attach(transformer, LoraConfig(), FLUX1, seed=5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("alpha", [None, 1.0, 12.0])
def test_starting_from_layers_computes_their_change(
    transformer: Any, fresh: Fresh, velocity: Velocity, alpha: float | None
) -> None:
    layers = {path: LoraLayer(layer.a, layer.b.clone(), 1.5) for path, layer in trained(transformer).items()}
    parameters = adapter_parameters(transformer)
    with torch.no_grad():
        for path, layer in layers.items():
            parameters[f"{path}.lora_B"].copy_(layer.b * layer.scale)
    expected = velocity(transformer)
    transformer = fresh()
    config = LoraConfig(rank=4, alpha=alpha)
    attach(transformer, config, FLUX1, seed=9)
    start_from(transformer, layers, config, FLUX1, "mug.safetensors")
    assert torch.allclose(velocity(transformer), expected, atol=1e-6)


def test_starting_at_the_same_scale_copies_the_weights_to_the_bit(transformer: Any, fresh: Fresh) -> None:
    layers = {
        path: LoraLayer(layer.a.clone(), layer.b.clone(), layer.scale)
        for path, layer in trained(transformer, alpha=3.0).items()
    }
    transformer = fresh()
    config = LoraConfig(rank=4, alpha=3.0)
    attach(transformer, config, FLUX1, seed=9)
    start_from(transformer, layers, config, FLUX1, "mug.safetensors")
    for path, layer in adapter_layers(dict(adapter_parameters(transformer)), scale_of(config)).items():
        assert torch.equal(layer.a, layers[path].a)
        assert torch.equal(layer.b, layers[path].b)


def test_starting_from_a_higher_rank_is_refused_with_the_right_one(transformer: Any, fresh: Fresh) -> None:
    layers = trained(transformer)
    transformer = fresh()
    attach(transformer, LoraConfig(rank=2), FLUX1, seed=0)
    with pytest.raises(UsageError, match=r"has rank 4.*asks for rank 2") as error:
        start_from(transformer, layers, LoraConfig(rank=2), FLUX1, "mug.safetensors")
    assert error.value.where == "mug.safetensors"
    assert "--rank 4" in str(error.value.hint)
    assert error.value.exit_code == ExitCode.USAGE


def test_starting_from_lower_ranks_computes_the_same_change_and_leaves_room(
    transformer: Any, fresh: Fresh, velocity: Velocity
) -> None:
    layers = trained(transformer)
    first = next(iter(layers))
    layers[first] = LoraLayer(layers[first].a[:2], layers[first].b[:, :2], layers[first].scale)
    smaller, larger = fresh(), fresh()
    for started, rank in ((smaller, 4), (larger, 8)):
        config = LoraConfig(rank=rank)
        attach(started, config, FLUX1, seed=0)
        start_from(started, layers, config, FLUX1, "mug.safetensors")
    assert torch.allclose(velocity(smaller), velocity(larger), atol=1e-6)
    assert not torch.allclose(velocity(larger), velocity(fresh()), atol=1e-3)
    parameters = adapter_parameters(larger)
    assert bool(parameters[f"{first}.lora_A"][2:].any()) and not bool(parameters[f"{first}.lora_B"][:, 2:].any())


def test_starting_from_fewer_layers_computes_their_change_and_begins_the_others_at_zero(
    transformer: Any, fresh: Fresh, velocity: Velocity
) -> None:
    layers = trained(transformer)
    expected = velocity(transformer)
    started = fresh()
    config = LoraConfig(rank=4, targets="attention+mlp")
    paths = attach(started, config, FLUX1, seed=0)
    start_from(started, layers, config, FLUX1, "mug.safetensors")
    assert torch.allclose(velocity(started), expected, atol=1e-6)
    held = adapter_layers(dict(adapter_parameters(started)), 1.0)
    assert (len(layers), len(held)) == (22, 34)
    assert [path for path in paths if not held[path].b.any()] == [path for path in paths if path not in layers]
    assert all(layer.a.any() for layer in held.values())


def test_starting_from_layers_that_are_not_trained_is_refused_with_targets_that_have_them(
    transformer: Any, fresh: Fresh
) -> None:
    layers = trained(transformer, targets="attention+mlp")
    transformer = fresh()
    config = LoraConfig(rank=4)
    attach(transformer, config, FLUX1, seed=0)
    with pytest.raises(UsageError, match=r"12 of the 34 layers of the LoRA are not among lora\.targets.*ff") as error:
        start_from(transformer, layers, config, FLUX1, "mug.safetensors")
    assert error.value.hint == "train them too: --set lora.targets=attention+mlp"


def test_starting_from_layers_that_the_model_does_not_have_is_refused(transformer: Any, fresh: Fresh) -> None:
    layers = {
        f"transformer_blocks.{number}.attn.to_q": layer for number, layer in enumerate(trained(transformer).values())
    }
    transformer = fresh()
    config = LoraConfig(rank=4)
    attach(transformer, config, FLUX1, seed=0)
    with pytest.raises(UsageError, match=r"of the 22 layers of the LoRA are none of the model: .*attn\.to_q") as error:
        start_from(transformer, layers, config, FLUX1, "mug.safetensors")
    assert "base model" in str(error.value.hint)


def test_an_adapter_as_saved_computes_with_what_its_file_holds(transformer: Any) -> None:
    layers = trained(transformer, alpha=12.0)
    held = folded_tensors(layers, torch.bfloat16)
    parameters = adapter_parameters(transformer)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with as_saved(parameters, 3.0, torch.bfloat16, torch.float32):
        for path in layers:
            a, b = (held[f"transformer.{path}.lora_{part}.weight"].float() for part in "AB")
            assert torch.equal(parameters[f"{path}.lora_A"], a)
            assert torch.allclose(parameters[f"{path}.lora_B"] * 3.0, b, rtol=1e-6)
    assert all(torch.equal(parameter, before[name]) for name, parameter in parameters.items())
