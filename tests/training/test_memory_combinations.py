"""The settings of [memory] together: whatever is combined, a LoRA learns to the bit what it learns without them."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import pytest
import torch
from late_transfers import LateTransfers

from fluxtune.config.model import ModelConfig
from fluxtune.config.schema import Config
from fluxtune.flux import load
from fluxtune.flux.base import Base, open_base
from fluxtune.flux.modulation import foreseen
from fluxtune.flux.weights import DTYPES
from fluxtune.lora.adapter import adapter_parameters, attach
from fluxtune.memory import offload
from fluxtune.memory.activations import ActivationOffload
from fluxtune.training.load import learner_of
from fluxtune.training.preflight import settled_memory
from fluxtune.training.step import Learner, MicroBatch, clip, learn, preserve, update, velocity

CHOICES: dict[str, list[Any]] = {
    # (training.precision, memory.base_precision)
    "precision": [
        *product(["fp32"], ["fp32", "int8", "int8-weights", "fp8", "nf4"]),
        *product(["bf16"], ["bf16", "fp32", "int8", "int8-weights", "fp8", "nf4"]),
    ],
    "recompute": [
        {"recompute": "none"},
        {"recompute": "all"},
        {"recompute": "all", "keep": {"attention": [1, 2], "products": [1, 1], "everything": [0, 1]}},
        {"recompute": "all", "keep": {"products": [2, 5]}},
    ],
    "targets": [
        "attention",
        "attention+mlp",
        "all-linear",
        ["*norm*.linear", "*.attn.to_[qv]", "single_transformer_blocks.*.proj_out", "x_embedder"],
    ],
    "streamed_blocks": [0, 3, 7],
    "modulation": ["card", "ahead"],
    "offload_activations": [False, True],
    "cache_quantized": [False, True],
    "dropout": [0.0, 0.3],
    "optimizer": ["adamw", "adamw-8bit"],
    "preserves": [False, True],
}
NOTHING = {"recompute": {"recompute": "none"}, "streamed_blocks": 0, "offload_activations": False}
Case = dict[str, Any]


def covering() -> list[Case]:
    """Cases that have every pair of choices that makes sense, found greedily; first those with most switched on."""
    cases = [dict(zip(CHOICES, values, strict=True)) for values in product(*CHOICES.values())]
    tried = [number for number, case in enumerate(cases) if sensible(case)][::17]
    pairs = {number: set(combinations(map(str, cases[number].items()), 2)) for number in tried}
    missing: set[tuple[str, ...]] = set().union(*pairs.values())
    chosen = []
    while missing:
        best = max(pairs, key=lambda number: len(pairs[number] & missing))
        missing -= pairs.pop(best)
        chosen.append(cases[best])
    return sorted(chosen, key=lambda case: sum(case[name] == choices[0] for name, choices in CHOICES.items()))


def sensible(case: Case) -> bool:
    """As `preflight` and `contradictions` would have it."""
    trains_embedders = case["targets"] == "all-linear" and case["modulation"] == "ahead"
    offloads_nothing = case["offload_activations"] and case["recompute"]["recompute"] == "none"
    return not trains_embedders and not offloads_nothing


@pytest.fixture(scope="module")
def nano() -> Base:
    """Two double and five single blocks, 160 wide: NF4 has blocks that run on from row to row."""
    return open_base(ModelConfig(base="nano"))


@pytest.fixture(autouse=True)
def all_copies_are_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever does not wait for a copy computes NaN, and small activations go to system memory, too."""
    monkeypatch.setattr(offload, "Transfers", lambda device: LateTransfers())
    monkeypatch.setattr(ActivationOffload, "smallest", 1)


def config_of(case: Case) -> Config:
    precision, held = case["precision"]
    memory = {name: case[name] for name in ("streamed_blocks", "modulation", "offload_activations", "cache_quantized")}
    return Config.model_validate(
        {
            "training": {"precision": precision, "optimizer": case["optimizer"], "learning_rate": 1e-2},
            "memory": {"base_precision": held, **case["recompute"], **memory},
            "lora": {"rank": 32, "targets": case["targets"], "dropout": case["dropout"]},
        }
    )


def trained(base: Base, case: Case) -> list[torch.Tensor]:
    """Losses, norms of gradients and the adapter of three steps."""
    config = config_of(case)
    transformer = load.load_transformer(
        base, settled_memory(config, base.family), DTYPES[config.training.precision], "cpu"
    )
    attach(transformer, config.lora, base.family, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter_parameters(transformer).values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    learner = learner_of(transformer, config, base.family, base.embeds_guidance, "cpu", LateTransfers())
    batches = [micro_batch(base, learner, seed) for seed in range(3)]
    seen: list[torch.Tensor] = []
    with foreseen(transformer, lambda: [velocity(learner, batch) for batch in batches]):
        for seed, batch in enumerate(batches):
            torch.manual_seed(seed)
            seen.append(learn(learner, batch))
            if case["preserves"]:
                seen.append(preserve(learner, batch, 0.5))
            seen.append(clip(learner))
            update(learner)
    return [*seen, *(parameter.detach() for parameter in learner.parameters)]


def micro_batch(base: Base, learner: Learner, seed: int) -> MicroBatch:
    generator = torch.Generator().manual_seed(seed)
    config = learner.transformer.config
    text = {
        "prompt_embeds": torch.randn(2, base.text_tokens, config.joint_attention_dim, generator=generator),
        "pooled_prompt_embeds": torch.randn(2, config.pooled_projection_dim, generator=generator),
    }
    latents, noise = (torch.randn(2, 64, 4, 6, generator=generator) for _ in range(2))
    text = {name: tensor.to(learner.dtype) for name, tensor in text.items()}
    return MicroBatch(latents, noise, torch.rand(2, generator=generator), text)


def without(case: Case) -> Case:
    return {**case, **NOTHING, "cache_quantized": False}


def plainly_trained(base: Base, case: Case) -> list[torch.Tensor]:
    """The same with nothing of [memory] but the precision. Where modulation would be computed ahead, its layers are
    plain ones that are not quantised."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "compute_ahead", lambda *_: None)
        return trained(base, without(case))


def told(case: Case) -> str:
    """Of a case, for its name."""
    recompute = case["recompute"]
    kept = "+".join(recompute.get("keep", {})) or recompute["recompute"]
    targets = case["targets"] if isinstance(case["targets"], str) else "patterns"
    switches = [name for name, value in case.items() if value is True]
    return " ".join(
        [*case["precision"], kept, targets, f"{case['streamed_blocks']} streamed", case["modulation"], *switches]
    )


COVERING = covering()


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if place < 6 else [pytest.mark.slow], id=told(case))
        for place, case in enumerate(COVERING)
    ],
)
def test_a_lora_learns_the_same_to_the_bit(nano: Base, case: Case) -> None:
    plain, combined = plainly_trained(nano, case), trained(nano, case)
    assert all(bool(tensor.isfinite().all()) for tensor in plain)
    assert all(torch.equal(*pair) for pair in zip(combined, plain, strict=True))
    if case["cache_quantized"]:
        again = trained(nano, case)
        assert all(torch.equal(*pair) for pair in zip(again, plain, strict=True))
