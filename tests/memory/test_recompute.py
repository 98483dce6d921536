"""What blocks keep changes no gradient, and how much is computed again and held: on small models, and at full size."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fluxtune.config.lora import LoraConfig
from fluxtune.config.schema import Config
from fluxtune.errors import UsageError
from fluxtune.flux.families import FLUX1
from fluxtune.flux.known import known_base
from fluxtune.lora.adapter import adapter_parameters, attach
from fluxtune.memory.quantize import quantized_linear, replace_module
from fluxtune.memory.recompute import Kept, keep_last, recompute_blocks
from fluxtune.nano import model_folder
from fluxtune.training.load import recompute
from fluxtune.training.simulation import Work, foresee_training

TINY = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "guidance_embeds": True,
    "axes_dims_rope": [4, 6, 6],
}
KEPT: list[list[Kept]] = [
    ["nothing"] * 4,
    ["attention"] * 4,
    ["products"] * 4,
    ["everything", "nothing", "products", "attention"],
]
POLICIES = pytest.mark.parametrize("kept", KEPT, ids=["nothing", "attention", "products", "a mixture"])


def blocks_of(transformer: Any) -> list[nn.Module]:
    return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]


def random_flux(precision: str | None = None, **lora: Any) -> nn.Module:
    """The same random model each time, with an adapter that has some effect; ``precision`` of its blocks' layers."""
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel.from_config(TINY).requires_grad_(False)
    for path, layer in list(transformer.named_modules()):
        if precision and type(layer) is nn.Linear and "transformer_blocks." in path:
            replace_module(
                transformer, path, quantized_linear(layer, layer.weight.data, precision, torch.float32, "cpu")
            )
    attach(transformer, LoraConfig(rank=4, **lora), FLUX1, seed=0)
    with torch.no_grad():
        for parameter in adapter_parameters(transformer).values():
            parameter += 0.3 * torch.randn(parameter.shape)
    return transformer.train()


def loss_of(transformer: nn.Module) -> torch.Tensor:
    torch.manual_seed(1)
    noisy = torch.randn(2, 64, 4, 6)
    text = {"prompt_embeds": torch.randn(2, 6, 32), "pooled_prompt_embeds": torch.randn(2, 32)}
    return FLUX1.forward(transformer, noisy, torch.tensor([0.25, 0.9]), text, 1.0).square().mean()


def gradients(transformer: nn.Module, loss: Callable[[nn.Module], torch.Tensor] = loss_of) -> list[torch.Tensor]:
    loss(transformer).backward()
    return [parameter.grad for parameter in adapter_parameters(transformer).values() if parameter.grad is not None]


def assert_equal(seen: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(seen) == len(expected) > 0
    assert all(torch.equal(one, other) for one, other in zip(seen, expected, strict=True))
    assert any(each.abs().max() > 0 for each in expected)


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


@POLICIES
@pytest.mark.parametrize("lora", [{"targets": "attention", "dropout": 0.3}, {"targets": "all-linear"}])
def test_gradients_are_those_of_the_plain_model_to_the_bit(kept: list[Kept], lora: dict[str, Any]) -> None:
    plain, policy = random_flux(**lora), random_flux(**lora)
    recompute_blocks(blocks_of(policy), kept)
    assert_equal(gradients(policy), gradients(plain))


@POLICIES
@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_gradients_through_quantised_layers_are_those_of_the_plain_model(kept: list[Kept], precision: str) -> None:
    plain, policy = random_flux(precision), random_flux(precision)
    recompute_blocks(blocks_of(policy), kept)
    assert_equal(gradients(policy), gradients(plain))


@POLICIES
def test_gradients_under_autocast_are_those_of_the_plain_model(kept: list[Kept]) -> None:
    def in_bfloat16(transformer: nn.Module) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss_of(transformer)

    plain, policy = random_flux(), random_flux()
    recompute_blocks(blocks_of(policy), kept)
    assert_equal(gradients(policy, in_bfloat16), gradients(plain, in_bfloat16))


@pytest.mark.parametrize("kept", ["nothing", "attention", "products"])
def test_gradients_of_the_embedded_model_are_the_same_to_the_bit(kept: Kept) -> None:
    def nano() -> nn.Module:
        transformer = diffusers.FluxTransformer2DModel.from_pretrained(model_folder() / "transformer")
        attach(transformer.requires_grad_(False), LoraConfig(targets="all-linear"), FLUX1, seed=0)
        return transformer.train()

    def loss(transformer: nn.Module) -> torch.Tensor:
        torch.manual_seed(1)
        config = transformer.config
        text = {
            "prompt_embeds": torch.randn(1, 16, config.joint_attention_dim),
            "pooled_prompt_embeds": torch.randn(1, config.pooled_projection_dim),
        }
        return FLUX1.forward(transformer, torch.randn(1, 64, 8, 8), torch.tensor([0.4]), text, 1.0).square().mean()

    plain, policy = nano(), nano()
    recompute_blocks(blocks_of(policy), [kept] * len(blocks_of(policy)))
    assert_equal(gradients(policy, loss), gradients(plain, loss))


@pytest.mark.parametrize("targets", ["attention", "all-linear"])
def test_a_block_that_keeps_products_computes_none_again(targets: str) -> None:
    operations: dict[Kept, int] = {}
    kinds: list[Kept] = ["everything", "products", "nothing"]
    for kept in kinds:
        transformer = random_flux(targets=targets)
        recompute_blocks(blocks_of(transformer), [kept] * 4)
        with FlopCounterMode(display=False) as counter:
            loss_of(transformer).backward()
        operations[kept] = counter.get_total_flops()
    assert operations["products"] == operations["everything"]
    assert operations["nothing"] > 1.3 * operations["everything"]


@pytest.mark.parametrize(("kept", "again"), [("nothing", 4), ("attention", 0), ("products", 0), ("everything", 0)])
def test_attention_that_is_kept_is_not_computed_again(kept: Kept, again: int) -> None:
    transformer = random_flux()
    recompute_blocks(blocks_of(transformer), [kept] * 4)
    with Operations() as operations:
        loss_of(transformer).backward()
    assert operations.seen["aten::_scaled_dot_product_flash_attention_for_cpu"] == 4 + again


@pytest.mark.parametrize(
    ("precision", "unpacking", "products"),
    [("nf4", "bitsandbytes::dequantize_4bit", "bitsandbytes::gemm_4bit"), ("int8", "aten::mul_", "aten::addmm")],
)
def test_quantised_layers_are_neither_multiplied_nor_unpacked_again(
    precision: str, unpacking: str, products: str
) -> None:
    seen: dict[Kept, Counter[str]] = {}
    kinds: list[Kept] = ["everything", "products", "nothing"]
    for kept in kinds:
        transformer = random_flux(precision)
        recompute_blocks(blocks_of(transformer), [kept] * 4)
        with Operations() as operations:
            loss_of(transformer).backward()
        seen[kept] = operations.seen
    for operation in (unpacking, products):
        assert seen["products"][operation] == seen["everything"][operation] > 0
    assert seen["nothing"][products] > seen["everything"][products]


@pytest.mark.parametrize("kept", ["nothing", "attention", "products"])
def test_after_the_backward_a_block_holds_nothing_even_before_garbage_is_collected(kept: Kept) -> None:
    transformer = random_flux()
    recompute_blocks(blocks_of(transformer), [kept] * 4)
    seen: list[weakref.ref[torch.Tensor]] = []
    for block in blocks_of(transformer):
        block.register_forward_pre_hook(
            lambda _, __, given: seen.append(weakref.ref(given["hidden_states"])), with_kwargs=True
        )
    gc.disable()
    try:
        loss_of(transformer).backward()
        assert len(seen) >= 4
        assert [reference() for reference in seen] == [None] * len(seen)
    finally:
        gc.enable()


def test_without_gradients_a_block_computes_as_ever() -> None:
    plain, policy = random_flux(), random_flux()
    recompute_blocks(blocks_of(policy), ["products"] * 4)
    with torch.no_grad():
        assert torch.equal(loss_of(policy), loss_of(plain))


def held_by(double: int, single: int, base: str, kept: Kept, targets: str) -> int:
    """Bytes held between forward and backward of FLUX.1-dev in that depth at 1024 px, besides weights and inputs."""
    keep = {} if kept == "nothing" else {kept: [double, single]}
    config = Config.model_validate(
        {"memory": {"base_precision": base, "keep": keep}, "lora": {"rank": 16, "targets": targets}}
    )
    dev = known_base("black-forest-labs/FLUX.1-dev")
    assert dev is not None
    forecast = foresee_training(Work(config, dev, (1024, 1024), None, depths=(double, single)))
    return next(alive["activations"] for phase, alive in forecast.timeline if phase == "backward")


WIDE = 4608 * 3072 * 2 / 2**20
"""MiB of one tensor of all 4,608 tokens at full width in bfloat16: 27."""


@pytest.mark.parametrize("base", ["bf16", "nf4", "int8"])
@pytest.mark.parametrize(
    ("kept", "double", "single"),
    [
        ("nothing", 1, 1),
        ("attention", 2, 2),
        # Its input, q, k, v, attention, what follows it, and 4 inside the mlp; not the last product of a branch.
        ("products", 10, 9),
    ],
)
def test_a_block_holds_what_it_keeps_once(base: str, kept: Kept, double: int, single: int) -> None:
    both = held_by(1, 1, base, kept, "attention")
    a_double = (held_by(2, 1, base, kept, "attention") - both) / 2**20
    a_single = (held_by(1, 2, base, kept, "attention") - both) / 2**20
    # Beside them the sums of the softmax and what the adapters' first products give, 16 wide.
    assert a_double == pytest.approx(double * WIDE, abs=2)
    assert a_single == pytest.approx(single * WIDE, abs=2)


def test_where_modulation_is_trained_the_last_products_are_needed_and_kept() -> None:
    both = held_by(1, 1, "bf16", "products", "all-linear")
    assert (held_by(1, 2, "bf16", "products", "all-linear") - both) / 2**20 == pytest.approx(10 * WIDE, abs=3)


def test_the_last_blocks_keep_most() -> None:
    assert keep_last(6, attention=1, products=2, everything=1) == [
        "nothing",
        "nothing",
        "attention",
        "products",
        "products",
        "everything",
    ]


def test_the_settings_say_how_many_blocks_of_each_kind_keep_what() -> None:
    operations = {}
    for keep in ({}, {"attention": [1]}, {"attention": [1], "products": [0, 2]}, {"everything": [2, 2]}):
        transformer = random_flux()
        recompute(transformer, FLUX1, Config.model_validate({"memory": {"keep": keep}}).memory)
        with Operations() as counted:
            loss_of(transformer).backward()
        operations[str(keep)] = counted.seen["aten::_scaled_dot_product_flash_attention_for_cpu"] - 4
    assert list(operations.values()) == [4, 3, 1, 0]


@pytest.mark.parametrize(
    "keep", [{"products": [3]}, {"attention": [1, 1], "everything": [0, 2]}, {"products": [0, 0, 1]}]
)
def test_more_blocks_than_there_are_is_a_usage_error(keep: dict[str, list[int]]) -> None:
    with pytest.raises(UsageError, match=r"memory\.keep names"):
        recompute(random_flux(), FLUX1, Config.model_validate({"memory": {"keep": keep}}).memory)


def test_what_blocks_keep_can_be_changed_and_undone_between_steps() -> None:
    plain, changed = random_flux(), random_flux()
    expected = gradients(plain)
    again = []
    policies: list[list[Kept]] = [["everything"] * 4, ["products"] * 4, ["nothing"] * 4, ["attention"] * 4]
    for kept in [*policies, *reversed(policies)]:
        recompute_blocks(blocks_of(changed), kept)
        with Operations() as operations:
            assert_equal(gradients(changed), expected)
        again.append(operations.seen["aten::_scaled_dot_product_flash_attention_for_cpu"] - 4)
        for parameter in adapter_parameters(changed).values():
            parameter.grad = None
    assert again == [0, 0, 4, 0, 0, 4, 0, 0]
    assert all("forward" not in vars(block) for block in blocks_of(changed))
