"""LoRAs that act on a model, against the model with the changed weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from fluxtune.flux.families import FLUX1
from fluxtune.flux.modulation import compute_ahead
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.attached import set_acting

Velocity = Callable[[Any], torch.Tensor]
Fresh = Callable[[], Any]
Layers = dict[str, LoraLayer]
PATHS = (
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.1.norm1.linear",
    "single_transformer_blocks.1.proj_out",
    "proj_out",
)


def layers_of(transformer: Any, seed: int = 1, paths: tuple[str, ...] = PATHS, grown: bool = False) -> Layers:
    """Layers of ranks of their own; ``grown`` with rows as a DoRA has them."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for number, path in enumerate(paths):
        linear = transformer.get_submodule(path)
        made[path] = LoraLayer(
            torch.randn(1 + number, linear.in_features, generator=generator),
            torch.randn(linear.out_features, 1 + number, generator=generator) * 0.1,
            0.5 + number,
            torch.randn(linear.out_features, generator=generator) * 0.2 if grown else None,
        )
    return made


def with_weights_changed(transformer: Any, *loras: Mapping[str, LoraLayer]) -> Any:
    """The model by the formula: every change is of the weight that was there first."""
    first = {name: parameter.clone() for name, parameter in transformer.named_parameters()}
    with torch.no_grad():
        for layers in loras:
            for path, layer in layers.items():
                weight = transformer.get_submodule(path).weight
                weight += layer.scale * layer.b @ layer.a
                if layer.growth is not None:
                    weight += layer.scale * layer.growth[:, None] * first[f"{path}.weight"]
    return transformer


@pytest.mark.parametrize("grown", [False, True], ids=["low-rank", "with grown rows"])
def test_loras_of_mixed_ranks_act_together_as_changed_weights_do(grown: bool, fresh: Fresh, velocity: Velocity) -> None:
    adapted = fresh()
    first = layers_of(adapted, 1, grown=grown)
    second = layers_of(adapted, 2, PATHS[2:], grown=grown)
    set_acting(adapted, {"mug": first, "style": second})
    assert torch.allclose(velocity(adapted), velocity(with_weights_changed(fresh(), first, second)), atol=1e-4)
    assert not torch.allclose(velocity(adapted), velocity(fresh()), atol=1e-2)


def test_scales_change_and_loras_go_without_a_trace(fresh: Fresh, velocity: Velocity) -> None:
    adapted = fresh()
    first, second = layers_of(adapted, 1, grown=True), layers_of(adapted, 2, PATHS[1:])
    set_acting(adapted, {"mug": first, "style": second})
    weaker = {path: replace(layer, scale=layer.scale * 0.25) for path, layer in first.items()}
    set_acting(adapted, {"mug": weaker})
    assert torch.allclose(velocity(adapted), velocity(with_weights_changed(fresh(), weaker)), atol=1e-4)
    set_acting(adapted, {})
    assert torch.equal(velocity(adapted), velocity(fresh()))
    assert not [name for name, _ in adapted.named_parameters() if "lora" in name]


def test_a_scale_of_zero_is_no_change_of_the_model(fresh: Fresh, velocity: Velocity) -> None:
    adapted = fresh()
    off = {path: replace(layer, scale=0.0) for path, layer in layers_of(adapted, grown=True).items()}
    set_acting(adapted, {"mug": off})
    assert torch.allclose(velocity(adapted), velocity(fresh()), atol=1e-6)


def test_modulation_that_is_computed_ahead_grows_too(fresh: Fresh, velocity: Velocity) -> None:
    ahead = fresh()
    compute_ahead(ahead, FLUX1)
    layers = layers_of(ahead, grown=True)
    set_acting(ahead, {"mug": layers})
    assert torch.allclose(velocity(ahead), velocity(with_weights_changed(fresh(), layers)), atol=1e-4)
