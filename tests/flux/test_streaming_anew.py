"""How many blocks are streamed can be changed between steps; every gradient stays what it was, to the bit."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from late_transfers import LateTransfers

from fluxtune.config.lora import LoraConfig
from fluxtune.config.memory import MemoryConfig
from fluxtune.flux.families import FLUX1
from fluxtune.flux.load import block_paths, build_transformer, stream_evenly
from fluxtune.lora.adapter import adapter_parameters, attach
from fluxtune.memory import offload

TINY = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 3,
    "num_single_layers": 4,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "guidance_embeds": True,
    "axes_dims_rope": [4, 6, 6],
}


@pytest.fixture(autouse=True)
def all_copies_are_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever does not wait for a copy computes NaN."""
    monkeypatch.setattr(offload, "Transfers", lambda device: LateTransfers())


def adapted(precision: str) -> Any:
    """The same random model each time, on which nothing is streamed yet."""
    torch.manual_seed(0)
    weights = diffusers.FluxTransformer2DModel.from_config(TINY).named_parameters()
    memory = MemoryConfig.model_validate({"base_precision": precision})
    plain = ((name, parameter.detach()) for name, parameter in weights)
    transformer = build_transformer(FLUX1, TINY, plain, memory, torch.float32, "cpu", "random weights")
    attach(transformer, LoraConfig(rank=2), FLUX1, seed=0)
    torch.manual_seed(1)
    for parameter in adapter_parameters(transformer).values():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return transformer.train()


def gradients(transformer: Any) -> list[torch.Tensor]:
    torch.manual_seed(2)
    text = {"prompt_embeds": torch.randn(2, 8, 32), "pooled_prompt_embeds": torch.randn(2, 32)}
    velocity = FLUX1.forward(transformer, torch.randn(2, 64, 4, 4), torch.tensor([0.3, 0.8]), text, 1.0)
    velocity.square().mean().backward()
    found = []
    for parameter in adapter_parameters(transformer).values():
        assert parameter.grad is not None
        found.append(parameter.grad)
        parameter.grad = None
    return found


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8-weights", "fp8", "nf4"])
def test_blocks_are_streamed_and_stay_again_without_a_change_of_gradients(precision: str) -> None:
    expected, transformer = gradients(adapted(precision)), adapted(precision)
    gradients(transformer)
    for number in (2, 5, 7, 3, 0, 1):
        stream_evenly(transformer, FLUX1, number, "cpu")
        held = transformer.block_stream.blocks if number else []
        assert len(held) == number
        for _ in range(2):
            seen = gradients(transformer)
            assert all(torch.equal(one, other) for one, other in zip(seen, expected, strict=True))
            assert all(bool(each.isfinite().all()) and each.abs().max() > 0 for each in seen)


def test_where_there_was_no_room_for_the_streams_places_it_can_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, transformer = gradients(adapted("fp32")), adapted("fp32")
    stream_evenly(transformer, FLUX1, 3, "cpu")

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr("fluxtune.flux.load.stream_blocks", full)
        stream_evenly(transformer, FLUX1, 5, "cpu")
    stream_evenly(transformer, FLUX1, len(block_paths(transformer, FLUX1)), "cpu")
    assert all(torch.equal(one, other) for one, other in zip(gradients(transformer), expected, strict=True))
