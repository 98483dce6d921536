from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import FluxPipeline, FluxTransformer2DModel

from fluxtune.config.lora import LoraConfig
from fluxtune.flux.families import FLUX1
from fluxtune.flux.latents import patchify
from fluxtune.lora.adapter import adapter_parameters, attach
from fluxtune.training.step import Learner, MicroBatch, clip, learn, preserve, update

Learners = Callable[..., Learner]
GUIDANCE = 1.0


@pytest.fixture
def learner_for(tiny_flux: Path) -> Learners:
    """A learner on a fresh transformer; ``trained`` gives its adapter some effect."""

    def make(*, recompute: bool = False, trained: bool = True, max_grad_norm: float = 0.0) -> Learner:
        transformer = FluxTransformer2DModel.from_pretrained(tiny_flux / "transformer")
        attach(transformer, LoraConfig(rank=4), FLUX1, seed=0)
        parameters = list(adapter_parameters(transformer).values())
        if trained:
            generator = torch.Generator().manual_seed(1)
            for parameter in parameters:
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        if recompute:
            transformer.enable_gradient_checkpointing()
        accelerator = Accelerator(cpu=True)
        optimizer = accelerator.prepare_optimizer(torch.optim.SGD(parameters, lr=1.0))
        return Learner(
            FLUX1, transformer.train(), optimizer, accelerator, parameters, torch.float32, GUIDANCE, max_grad_norm
        )

    return make


class Fixed:
    """A fixed batch of two: latents and noise as images ``[2, 16, 8, 12]``, their noise levels and text."""

    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(2, 16, 8, 12, generator=generator)
    noise = torch.randn(2, 16, 8, 12, generator=generator)
    sigmas = torch.tensor([0.25, 0.9])
    prompt_embeds = torch.randn(2, 6, 32, generator=generator)
    pooled = torch.randn(2, 32, generator=generator)


def batch() -> MicroBatch:
    text = {"prompt_embeds": Fixed.prompt_embeds, "pooled_prompt_embeds": Fixed.pooled}
    return MicroBatch(patchify(Fixed.latents), patchify(Fixed.noise), Fixed.sigmas, text)


def gradients(learner: Learner) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in learner.parameters if parameter.grad is not None]


def by_the_paper(transformer: Any) -> torch.Tensor:
    """Rectified flow, written down again: E || (noise - x0) - v((1 - t) x0 + t noise, t) ||^2, per value."""
    losses = []
    for index, sigma in enumerate(Fixed.sigmas):
        x0, x1 = Fixed.latents[index : index + 1], Fixed.noise[index : index + 1]
        x_t = (1 - sigma) * x0 + sigma * x1
        v = transformer(
            hidden_states=FluxPipeline._pack_latents(x_t, 1, 16, 8, 12),
            encoder_hidden_states=Fixed.prompt_embeds[index : index + 1],
            pooled_projections=Fixed.pooled[index : index + 1],
            timestep=sigma[None],
            guidance=torch.tensor([GUIDANCE]),
            img_ids=FluxPipeline._prepare_latent_image_ids(1, 4, 6, torch.device("cpu"), torch.float32),
            txt_ids=torch.zeros(6, 3),
        ).sample
        wanted = FluxPipeline._pack_latents(x1 - x0, 1, 16, 8, 12)
        losses.append(((wanted - v) ** 2).sum() / v.numel())
    return (losses[0] + losses[1]) / 2


def test_the_loss_equals_the_papers_formula(learner_for: Learners) -> None:
    learner = learner_for()
    expected = by_the_paper(learner.transformer)
    assert float(learn(learner, batch())) == pytest.approx(float(expected), abs=1e-5)
    ours = gradients(learner)
    theirs = torch.autograd.grad(expected, learner.parameters)
    assert all(torch.allclose(seen, wanted, atol=1e-5) for seen, wanted in zip(ours, theirs, strict=True))


def test_recomputing_every_block_gives_the_same_gradients_to_the_bit(learner_for: Learners) -> None:
    kept, recomputed = learner_for(), learner_for(recompute=True)
    assert torch.equal(learn(kept, batch()), learn(recomputed, batch()))
    preserve(kept, batch(), 0.5)
    preserve(recomputed, batch(), 0.5)
    assert all(torch.equal(a, b) for a, b in zip(gradients(kept), gradients(recomputed), strict=True))


def test_a_fresh_adapter_has_nothing_to_preserve(learner_for: Learners) -> None:
    learner = learner_for(trained=False)
    assert float(preserve(learner, batch(), 1.0)) == 0.0


def test_the_preservation_loss_is_the_distance_to_the_base_models_answer(
    learner_for: Learners, tiny_flux: Path
) -> None:
    learner = learner_for()
    base = FluxTransformer2DModel.from_pretrained(tiny_flux / "transformer")
    noisy = patchify((1 - Fixed.sigmas.view(2, 1, 1, 1)) * Fixed.latents + Fixed.sigmas.view(2, 1, 1, 1) * Fixed.noise)
    with torch.no_grad():
        kept, changed = (
            FLUX1.forward(model, noisy, Fixed.sigmas, batch().text, GUIDANCE) for model in (base, learner.transformer)
        )
    loss = preserve(learner, batch(), 1.0)
    assert float(loss) == pytest.approx(float(((kept - changed) ** 2).mean()), rel=1e-4)
    assert float(loss) > 1e-4


def test_preserving_drives_the_model_back_to_the_base(learner_for: Learners) -> None:
    learner = learner_for()
    losses = []
    for _ in range(12):
        losses.append(float(preserve(learner, batch(), 1.0)))
        update(learner)
    assert losses[-1] < 0.5 * losses[0]


def test_preservation_of_weight_zero_adds_nothing(learner_for: Learners) -> None:
    alone, guarded = learner_for(), learner_for()
    learn(alone, batch())
    learn(guarded, batch())
    preserve(guarded, batch(), 0.0)
    assert all(torch.equal(a, b) for a, b in zip(gradients(alone), gradients(guarded), strict=True))


def test_gradients_are_clipped_to_the_norm_and_reported_before(learner_for: Learners) -> None:
    free, clipped = learner_for(), learner_for(max_grad_norm=1e-3)
    norms, moves = [], []
    for learner in (free, clipped):
        before = [parameter.detach().clone() for parameter in learner.parameters]
        learn(learner, batch())
        norms.append(clip(learner))
        update(learner)
        moved = [parameter.detach() - old for parameter, old in zip(learner.parameters, before, strict=True)]
        moves.append(float(torch.cat([move.flatten() for move in moved]).norm()))
    assert norms[0] == norms[1] == pytest.approx(moves[0], rel=1e-4)
    assert moves[1] == pytest.approx(1e-3, rel=1e-2)


def test_an_update_clears_the_gradients(learner_for: Learners) -> None:
    learner = learner_for()
    learn(learner, batch())
    assert gradients(learner)
    update(learner)
    assert gradients(learner) == []
