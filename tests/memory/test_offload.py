"""Streamed blocks against the same blocks that stay: every gradient, to the bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import pytest
import torch
from late_transfers import LateTransfers
from torch import nn
from torch.utils.checkpoint import checkpoint

from fluxtune.config.lora import LoraConfig
from fluxtune.flux.families import FAMILIES
from fluxtune.lora.adapter import adapter_disabled, adapter_parameters, attach
from fluxtune.memory.ledger import Ledger
from fluxtune.memory.offload import BlockStream, spread, stream_blocks
from fluxtune.memory.quantize import quantized_linear, replace_module
from fluxtune.memory.simulate import DEVICE, SimulatedTransfers, give_content, simulate

FAMILY = FAMILIES[0]
DOUBLE, SINGLE = 3, 4
Forward = Callable[[nn.Module], torch.Tensor]


def model(precision: str = "fp32", dtype: torch.dtype = torch.float32) -> Any:
    """A small FLUX of random weights."""
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=DOUBLE,
        num_single_layers=SINGLE,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    ).to(dtype)
    transformer.requires_grad_(False)
    for path, layer in list(transformer.named_modules()):
        if precision != "fp32" and type(layer) is nn.Linear and "transformer_blocks." in path:
            replace_module(transformer, path, quantized_linear(layer, layer.weight.data, precision, dtype, "cpu"))  # type: ignore[arg-type]
    return transformer


def adapt(transformer: Any, targets: str = "attention") -> None:
    """Attach an adapter that changes something."""
    attach(transformer, LoraConfig(rank=2, targets=targets), FAMILY, 1)
    torch.manual_seed(1)
    for name, parameter in adapter_parameters(transformer).items():
        if name.endswith("lora_B"):
            nn.init.normal_(parameter, std=0.1)
    transformer.train()


def blocks_of(transformer: Any) -> list[nn.Module]:
    return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]


def velocity(transformer: Any, seed: int = 2) -> torch.Tensor:
    torch.manual_seed(seed)
    like = next(transformer.x_embedder.parameters())
    noisy, prompt, pooled = (torch.randn(shape).to(like) for shape in ((2, 64, 4, 4), (2, 8, 32), (2, 32)))
    text = {"prompt_embeds": prompt, "pooled_prompt_embeds": pooled}
    return FAMILY.forward(transformer, noisy, torch.tensor([0.3, 0.8]).to(like), text, 1.0)


def gradients(transformer: Any) -> dict[str, torch.Tensor]:
    """Of the adapter, which are forgotten by it."""
    found = {}
    for name, parameter in adapter_parameters(transformer).items():
        assert parameter.grad is not None, name
        found[name] = parameter.grad
        parameter.grad = None
    return found


def learned(transformer: Any) -> dict[str, torch.Tensor]:
    velocity(transformer).square().mean().backward()
    return gradients(transformer)


def assert_same(seen: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(seen) == set(expected)
    for name, gradient in expected.items():
        assert torch.equal(seen[name], gradient), name
    assert any(bool(gradient.any()) for gradient in expected.values())


def streamed(transformer: Any, number: int, ahead: int = 2) -> tuple[BlockStream, LateTransfers]:
    transfers = LateTransfers()
    stream = stream_blocks(spread(blocks_of(transformer), number), "cpu", ahead, transfers)
    for slot in stream.slots:
        slot.fill_(0xFF)
    return stream, transfers


def recompute_inside(transformer: Any) -> None:
    """Checkpoints within the forward of each block, that computing again does not pass its hooks."""
    for block in blocks_of(transformer):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


RECOMPUTE: dict[str, Callable[[Any], object]] = {
    "nothing": lambda transformer: None,
    "around": lambda transformer: transformer.enable_gradient_checkpointing(),
    "inside": recompute_inside,
    "some": lambda transformer: [
        setattr(block, "forward", partial(checkpoint, block.forward, use_reentrant=False))
        for block in blocks_of(transformer)[::2]
    ],
}


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize(("number", "ahead"), [(1, 2), (3, 1), (5, 2), (7, 0), (7, 2), (7, 3), (7, 9)])
def test_every_gradient_is_that_of_the_plain_model_to_the_bit(recompute: str, number: int, ahead: int) -> None:
    plain, other = model(), model()
    adapt(plain)
    streamed(other, number, ahead)
    adapt(other)
    RECOMPUTE[recompute](other)
    expected = learned(plain)
    for _ in range(3):
        assert_same(learned(other), expected)


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_quantised_blocks_are_streamed_as_well(precision: str, dtype: torch.dtype, recompute: str) -> None:
    plain, other = model(precision, dtype), model(precision, dtype)
    adapt(plain)
    streamed(other, 6, 1)
    adapt(other)
    RECOMPUTE[recompute](other)
    expected = learned(plain)
    for _ in range(3):
        assert_same(learned(other), expected)


@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_gradients_are_right_with_an_adapter_on_every_layer(recompute: str) -> None:
    plain, other = model(), model()
    adapt(plain, "all-linear")
    streamed(other, 6, 1)
    adapt(other, "all-linear")
    RECOMPUTE[recompute](other)
    expected = learned(plain)
    for _ in range(2):
        assert_same(learned(other), expected)


def test_blocks_that_are_adapted_already_are_streamed_without_their_adapter() -> None:
    plain, other = model(), model()
    adapt(plain)
    adapt(other)
    before = {name: parameter.data_ptr() for name, parameter in adapter_parameters(other).items()}
    streamed(other, 7)
    assert {name: parameter.data_ptr() for name, parameter in adapter_parameters(other).items()} == before
    assert_same(learned(other), learned(plain))


@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_forwards_may_come_between_a_forward_and_its_backward(recompute: str) -> None:
    def crossed(transformer: Any) -> dict[str, torch.Tensor]:
        first = velocity(transformer, 3).square().mean()
        with torch.no_grad(), adapter_disabled(transformer):
            target = velocity(transformer, 4)
        second = (velocity(transformer, 4) - target).square().mean()
        second.backward()
        first.backward()
        return gradients(transformer)

    plain, other = model(), model()
    adapt(plain)
    streamed(other, 5, 1)
    adapt(other)
    RECOMPUTE[recompute](other)
    assert_same(crossed(other), crossed(plain))


def test_pictures_are_those_of_the_plain_model_to_the_bit_and_training_goes_on() -> None:
    plain, other = model(), model()
    adapt(plain)
    streamed(other, 6, 1)
    adapt(other)
    expected = learned(plain)
    assert_same(learned(other), expected)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            for seed in (5, 6):
                assert torch.equal(velocity(other, seed), velocity(plain, seed))
    assert_same(learned(other), expected)


def test_nothing_is_written_back_and_the_masters_stay_as_they_are() -> None:
    transformer = model("nf4")
    stream, transfers = streamed(transformer, 7)
    adapt(transformer)
    before = [master.clone() for master in stream.masters]
    for _ in range(2):
        learned(transformer)
    assert transfers.downloaded == 0
    assert transfers.uploaded > 0
    assert all(torch.equal(master, copy) for master, copy in zip(stream.masters, before, strict=True))


def test_blocks_are_copied_in_the_order_of_the_forward_and_then_backwards_and_no_oftener_than_needed() -> None:
    transformer = model()
    stream, transfers = streamed(transformer, 7, ahead=2)
    adapt(transformer)

    def copied() -> list[int]:
        pointers = {master.data_ptr(): index for index, master in enumerate(stream.masters)}
        order = [pointers[source.data_ptr()] for source in transfers.order]
        transfers.order.clear()
        return order

    learned(transformer)
    assert copied() == [0, 1, 2, 3, 4, 5, 6, 3, 2, 1, 0]
    learned(transformer)
    assert copied() == [3, 4, 5, 6, 3, 2, 1, 0]
    with torch.no_grad():
        velocity(transformer)
        assert copied() == [3, 4, 5, 6, 0, 1, 2]
        velocity(transformer)
        assert copied() == [3, 4, 5, 6, 0, 1, 2]


def test_the_bytes_of_a_step_are_those_of_the_blocks_that_do_not_fit_twice() -> None:
    transformer = model()
    stream, transfers = streamed(transformer, 7, ahead=1)
    adapt(transformer)
    learned(transformer)
    before = transfers.uploaded
    learned(transformer)
    sizes = [master.numel() for master in stream.masters]
    assert transfers.uploaded - before == sum(sizes[2:]) + sum(sizes[:-2])


def test_a_copy_is_asked_for_as_many_blocks_ahead_as_there_are_places() -> None:
    transformer = model()
    _, transfers = streamed(transformer, 7, ahead=2)
    adapt(transformer)
    learned(transformer)
    transfers.order.clear()
    asked: dict[str, list[int]] = {"forward": [], "backward": []}
    for block in blocks_of(transformer):
        block.register_forward_hook(lambda *_: asked["forward"].append(len(transfers.order)), prepend=True)
        block.attn.to_q.register_full_backward_hook(lambda *_: asked["backward"].append(len(transfers.order)))
    learned(transformer)
    assert asked["forward"] == [0, 1, 2, 3, 4, 4, 4]
    assert asked["backward"] == [4, 5, 6, 7, 8, 8, 8]


def test_the_device_holds_one_block_more_than_are_ahead_and_no_other_weights() -> None:
    transformer = model()
    stream, _ = streamed(transformer, 7, ahead=1)
    places = {slot.untyped_storage().data_ptr(): slot for slot in stream.slots}
    assert len(places) == 2
    for block in blocks_of(transformer):
        for tensor in itertools.chain(block.parameters(), block.buffers()):
            assert tensor.untyped_storage().data_ptr() in places
    largest = sum(parameter.nbytes for parameter in transformer.transformer_blocks[0].parameters())
    assert all(largest <= slot.numel() < 1.1 * largest for slot in stream.slots)


def test_a_streamed_model_says_of_its_device_and_precision_what_the_plain_one_does() -> None:
    transformer = model("fp32", torch.bfloat16)
    streamed(transformer, 7)
    assert transformer.device == torch.device("cpu")
    assert transformer.dtype == torch.bfloat16


def test_blocks_are_spread_at_even_distances() -> None:
    assert spread(range(57), 57) == list(range(57))
    assert spread(range(9), 3) == [1, 4, 7]
    assert spread(range(9), 0) == []
    for number in range(1, 58):
        chosen = spread(range(57), number)
        distances = {after - before for before, after in itertools.pairwise(chosen)}
        assert len(set(chosen)) == number
        assert not distances or max(distances) - min(distances) <= 1


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "int8", "nf4"])
def test_on_a_card_blocks_come_from_pinned_memory_in_time(precision: str) -> None:
    plain, other = model(precision).to("cuda"), model(precision)
    adapt(plain)
    stream = stream_blocks(blocks_of(other), "cuda", 1)
    assert all(master.is_pinned() for master in stream.masters)
    assert other.to("cuda").device.type == "cuda"
    adapt(other)
    expected = learned(plain)
    for _ in range(3):
        for name, gradient in learned(other).items():
            assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-7), name


def test_a_simulation_counts_the_places_on_the_device_and_not_the_masters() -> None:
    transformer = model().to("meta")
    sizes = [sum(-(-each.nbytes // 256) * 256 for each in block.parameters()) for block in blocks_of(transformer)]
    rest = sum(each.nbytes for each in transformer.parameters())
    rest -= sum(each.nbytes for block in blocks_of(transformer) for each in block.parameters())
    adapt(transformer)
    streams = []

    def build(ledger: Ledger) -> Any:
        give_content(transformer, lambda each: each.dtype)
        streams.append(stream_blocks(blocks_of(transformer), DEVICE, 1, SimulatedTransfers(ledger)))
        for tensor in transformer.parameters():
            ledger.claim(tensor, "adapter" if tensor.requires_grad else "weights")
        return transformer

    def step(work: Any, _: Ledger) -> None:
        with torch.device(DEVICE):
            velocity(work).square().mean().backward()
        for parameter in work.parameters():
            parameter.grad = None

    ledger = simulate(build, step, as_cuda=False)
    assert ledger.peak.alive["weights"] == rest + 2 * sizes[0]
    assert streams[0].transfers.uploaded == 2 * sum(sizes) - sum(sizes[-2:])
