from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fluxtune.config.lora import LoraConfig
from fluxtune.config.memory import MemoryConfig
from fluxtune.config.schema import Config
from fluxtune.flux.base import Base
from fluxtune.flux.denoise import Request, generate_latents, looking_ahead
from fluxtune.flux.families import FLUX1
from fluxtune.flux.known import known_base
from fluxtune.flux.load import image_pipeline, load_transformer, load_vae
from fluxtune.flux.modulation import RowLinear, foreseen, is_modulation
from fluxtune.lora.adapter import adapter_parameters, attach
from fluxtune.training.simulation import Work, foresee_training

SIGMAS = torch.tensor([0.3, 0.6])
EMBEDDERS, NORMS = [f"{FLUX1.conditioner}.*"], ["*norm*.linear"]


def loaded(base: Base, modulation: str, precision: str = "fp32", dtype: torch.dtype = torch.float32) -> Any:
    memory = MemoryConfig(base_precision=precision, modulation=modulation)  # type: ignore[arg-type]
    return load_transformer(base, memory, dtype, "cpu")


def velocity(transformer: Any, sigmas: torch.Tensor = SIGMAS, guidance: float = 1.0) -> torch.Tensor:
    """The answer to a fixed picture and text."""
    generator = torch.Generator().manual_seed(3)
    dtype = transformer.dtype
    noisy = torch.randn(len(sigmas), 64, 4, 4, generator=generator).to(dtype)
    text = {
        "prompt_embeds": torch.randn(len(sigmas), 6, 32, generator=generator),
        "pooled_prompt_embeds": torch.randn(len(sigmas), 32, generator=generator),
    }
    return FLUX1.forward(transformer, noisy, sigmas, text, guidance)


def row_layers(transformer: nn.Module) -> list[RowLinear]:
    return [module for module in transformer.modules() if isinstance(module, RowLinear)]


def held_bytes(transformer: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*transformer.parameters(), *transformer.buffers()))


def with_adapter(transformer: Any, targets: list[str]) -> Any:
    """The transformer with an adapter that has some effect."""
    attach(transformer, LoraConfig(rank=4, targets=targets), FLUX1, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return transformer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_velocities_are_the_same_to_the_bit(base: Base, dtype: torch.dtype) -> None:
    precision = "fp32" if dtype == torch.float32 else "bf16"
    card, ahead = (loaded(base, modulation, precision, dtype) for modulation in ("card", "ahead"))
    with torch.no_grad():
        expected = velocity(card)
        assert torch.equal(velocity(ahead), expected)
        with foreseen(ahead, lambda: velocity(ahead)):
            assert torch.equal(velocity(ahead), expected)


def test_the_layers_are_those_that_read_the_conditioning(base: Base) -> None:
    transformer, read = loaded(base, "card"), set()
    for path, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _, inputs, __, path=path: read.add((path, tuple(inputs[0].shape))))
    velocity(transformer)
    vectors = {path for path, shape in read if len(shape) == 2 and not path.startswith(FLUX1.conditioner)}
    assert vectors == {path for path, _ in transformer.named_modules() if is_modulation(path, FLUX1)}
    assert len(vectors) == 2 * 2 + 2 + 1
    assert {path for path, shape in read if path.startswith(FLUX1.conditioner)} == set(FLUX1.embedders)


def test_the_weights_are_no_part_of_what_moves_to_a_device(base: Base) -> None:
    card, ahead = loaded(base, "card"), loaded(base, "ahead")
    layers = {path: layer for path, layer in card.named_modules() if is_modulation(path, FLUX1)}
    saved = sum(layer.weight.nbytes + layer.bias.nbytes for layer in layers.values())
    assert held_bytes(card) - held_bytes(ahead) == saved
    ahead.to(torch.bfloat16).to("meta")
    assert all(parameter.is_meta for parameter in ahead.parameters())
    assert (ahead.device, ahead.dtype) == (torch.device("meta"), torch.bfloat16)
    for path, layer in layers.items():
        held = ahead.get_submodule(path)
        assert {held.held.device.type, held.held_bias.device.type} == {"cpu"}
        assert torch.equal(held.held, layer.weight)
        assert torch.equal(held.held_bias, layer.bias)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's memory map")
def test_the_weights_are_read_from_the_mapped_file(base: Base) -> None:
    transformer = loaded(base, "ahead")
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    folder = str(base.folder / "transformer")
    spans = [[int(end, 16) for end in line[0].split("-")] for line in maps if line[-1].startswith(folder)]
    for layer in row_layers(transformer):
        assert any(start <= layer.held.data_ptr() < end for start, end in spans)


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_the_weights_are_never_quantised(base: Base, precision: str) -> None:
    file = load_file(base.folder / "transformer" / "diffusion_pytorch_model.safetensors")
    transformer = loaded(base, "ahead", precision)
    for path, module in transformer.named_modules():
        if isinstance(module, RowLinear):
            assert torch.equal(module.held, file[f"{path}.weight"])


def test_one_pass_over_the_weights_serves_every_call_that_was_foreseen(base: Base, passes: Callable[[], int]) -> None:
    transformer = loaded(base, "ahead")
    layers = len(row_layers(transformer))
    calls = [(sigma, guidance) for sigma in (0.1, 0.5, 0.9) for guidance in (1.0, 3.5)]

    def call_each() -> list[torch.Tensor]:
        return [velocity(transformer, torch.tensor([sigma]), guidance) for sigma, guidance in calls]

    with foreseen(transformer, call_each):
        assert passes() == layers
        answers = call_each()
        assert passes() == layers
        with foreseen(transformer, call_each):
            assert passes() == layers
        call_each()
        assert passes() == layers
    assert all(not torch.equal(answers[0], other) for other in answers[1:])
    call_each()
    assert passes() == layers + len(calls) * layers


def test_foreseen_calls_do_not_reach_the_blocks(base: Base) -> None:
    transformer = loaded(base, "ahead")
    reached: list[nn.Module] = []
    transformer.transformer_blocks[0].register_forward_hook(lambda module, *_: reached.append(module))
    with foreseen(transformer, lambda: velocity(transformer)):
        assert not reached
        velocity(transformer)
    assert len(reached) == 1


def test_a_failure_in_what_is_foreseen_leaves_the_transformer_whole(base: Base) -> None:
    transformer = loaded(base, "ahead")

    def fail() -> None:
        velocity(transformer)
        raise OSError

    with pytest.raises(OSError), foreseen(transformer, fail):
        pass
    assert torch.equal(velocity(transformer), velocity(loaded(base, "card")))


def test_rows_made_for_pictures_serve_training(base: Base) -> None:
    transformer = with_adapter(loaded(base, "ahead"), NORMS)

    def in_inference_mode() -> None:
        with torch.inference_mode():
            velocity(transformer)

    with foreseen(transformer, in_inference_mode):
        velocity(transformer).sum().backward()
    plain = with_adapter(loaded(base, "card"), NORMS)
    velocity(plain).sum().backward()
    ours, theirs = (adapter_parameters(model).values() for model in (transformer, plain))
    assert all(torch.equal(mine.grad, other.grad) for mine, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("targets", [NORMS, EMBEDDERS, ["*"]], ids=["norms", "embedders", "all"])
def test_an_adapter_on_what_makes_or_reads_the_conditioning_acts_the_same(base: Base, targets: list[str]) -> None:
    card, ahead = (with_adapter(loaded(base, modulation), targets) for modulation in ("card", "ahead"))
    with torch.no_grad(), foreseen(ahead, lambda: velocity(ahead)):
        assert torch.equal(velocity(ahead), velocity(card))
        for transformer in (card, ahead):
            transformer.disable_adapters()
        assert torch.equal(velocity(ahead), velocity(card))
        assert torch.equal(velocity(card), velocity(loaded(base, "card")))


def test_training_the_embedders_is_refused_rather_than_without_their_gradient(base: Base) -> None:
    transformer = with_adapter(loaded(base, "ahead"), EMBEDDERS)
    with pytest.raises(RuntimeError, match="no gradient"):
        velocity(transformer)


def test_pictures_are_the_same_to_the_bit_and_their_steps_foreseen(base: Base, passes: Callable[[], int]) -> None:
    requests = [
        Request(prompt, 64, side, steps, 3.5, seed)
        for prompt, side, steps in (("a", 64, 2), ("a", 96, 2), ("b", 64, 3))
        for seed in (1, 2)
    ]
    generator = torch.Generator().manual_seed(1)
    texts = {
        prompt: {
            "prompt_embeds": torch.randn(1, 6, 32, generator=generator),
            "pooled_prompt_embeds": torch.randn(1, 32, generator=generator),
        }
        for prompt in "ab"
    }
    made = {}
    for modulation in ("card", "ahead"):
        transformer = loaded(base, modulation)
        pipeline = image_pipeline(base, transformer, load_vae(base, torch.float32, "cpu"))
        ahead = looking_ahead(base, pipeline, requests, texts.__getitem__)
        made[modulation] = [generate_latents(base, pipeline, texts[each.prompt], each) for each in ahead]
    assert passes() == len(row_layers(transformer))
    assert len(made["card"]) == len(requests)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(made["ahead"], made["card"], strict=True))


def test_many_pictures_are_foreseen_in_bounded_groups(base: Base, passes: Callable[[], int]) -> None:
    transformer = loaded(base, "ahead")
    pipeline = image_pipeline(base, transformer, load_vae(base, torch.float32, "cpu"))
    text = {"prompt_embeds": torch.zeros(1, 6, 32), "pooled_prompt_embeds": torch.zeros(1, 32)}
    requests = [Request(str(number), 16, 16, 100, 3.5, 1) for number in range(3)]
    ahead = looking_ahead(base, pipeline, requests, lambda _: text)
    layers = len(row_layers(transformer))
    expected = iter((layers, layers, 2 * layers))
    for _ in ahead:
        assert passes() == next(expected)


def test_a_simulation_holds_the_rows_and_no_weights() -> None:
    dev = known_base("black-forest-labs/FLUX.1-dev")
    assert dev is not None
    weights = {}
    for where in ("card", "ahead"):
        settings = Config.model_validate({"memory": {"modulation": where}})
        forecast = foresee_training(Work(settings, dev, (64, 64), None, depths=(1, 1)))
        weights[where] = next(phase.alive["weights"] for phase in forecast.phases if phase.phase == "forward")
    # Two layers of 6 times the width in the double block, one of 3 times in the single one, of 2 times at the end.
    assert weights["card"] - weights["ahead"] == pytest.approx((6 + 6 + 3 + 2) * 3072**2 * 2, rel=1e-3)
