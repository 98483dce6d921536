"""Pretraining of the transformer: flow matching, with a head that must also tell what is at each token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from fluxtune.nano.painter import KINDS
from fluxtune.nano.palette import BACKGROUND_COLOURS, BACKGROUND_KINDS, COLOURS
from fluxtune.recipes.nano.architecture import build_transformer
from fluxtune.recipes.nano.batches import Batch, Batches
from fluxtune.recipes.nano.export import assemble
from fluxtune.recipes.nano.muon import Muon
from fluxtune.recipes.nano.progress import (
    COMPUTE,
    Budget,
    load_checkpoint,
    rate_at,
    record,
    require_checkpoint,
    save_checkpoint,
    say,
)
from fluxtune.recipes.nano.workers import average_gradients, first_says, rank, world

BATCH = 32
"""Of one process."""
MUON_RATE, ADAMW_RATE = 2e-3, 1e-3
EMA_DECAY = 0.999
ALIGNMENT_WEIGHT = 0.3
THING_WEIGHT = 3.0
"""Of a token that shows a thing, where one of the background has 1: a small critter fills a quarter of the tokens."""
TAP = 1
"""The single block after which the alignment head looks."""

LABELS = (len(KINDS), 1 + len(COLOURS), len(BACKGROUND_KINDS), len(BACKGROUND_COLOURS))


class AlignmentHead(nn.Module):
    """Predicts each token's labels from the transformer's state: the painter's truth as a teacher of
    representations (the idea of REPA, Yu et al., 2024, with labels in place of a vision model's features)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, sum(LABELS)))

    def forward(self, states: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of states `[batch, tokens, width]` against labels `[batch, tokens, 4]`."""
        logits = self.layers(states).split(LABELS, dim=-1)
        losses = [
            functional.cross_entropy(part.flatten(0, 1), labels[..., i].flatten()) for i, part in enumerate(logits)
        ]
        return torch.stack(losses).mean()


def velocity_and_states(
    model: FluxTransformer2DModel,
    noisy: Tensor,
    sigmas: Tensor,
    guidance: Tensor,
    text: Tensor,
    pooled: Tensor,
    rotary: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """What `model.forward` computes, and the image tokens' states in the middle of the stack."""
    image = model.x_embedder(noisy)
    embedding = model.time_text_embed(sigmas * 1000, guidance * 1000, pooled)
    words = model.context_embedder(text)
    for block in model.transformer_blocks:
        words, image = block(image, words, embedding, rotary)
    states = image
    for index, block in enumerate(model.single_transformer_blocks):
        words, image = block(image, words, embedding, rotary)
        if index == TAP:
            states = image
    return model.proj_out(model.norm_out(image, embedding)), states


def rotary_of(model: FluxTransformer2DModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Rotary embedding of text then image positions."""
    return model.pos_embed(torch.cat((torch.zeros(batch.text.shape[1], 3), batch.image_ids)))


def compiled_losses(model: FluxTransformer2DModel, head: AlignmentHead) -> Callable[[Batch], tuple[Tensor, Tensor]]:
    """A function from a batch to the flow-matching loss, by `THING_WEIGHT`, and the alignment loss."""

    @torch.compile(dynamic=False)
    def losses(
        noisy: Tensor,
        velocity: Tensor,
        sigmas: Tensor,
        text: Tensor,
        pooled: Tensor,
        labels: Tensor,
        rotary: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        guidance = torch.ones_like(sigmas)
        predicted, states = velocity_and_states(model, noisy, sigmas, guidance, text, pooled, rotary)
        weights = torch.where(labels[..., 0] > 0, THING_WEIGHT, 1.0)
        weights = weights / weights.mean(dim=1, keepdim=True)
        return (weights * (predicted - velocity).square().mean(dim=-1)).mean(), head(states, labels)

    def of_batch(batch: Batch) -> tuple[Tensor, Tensor]:
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", dtype=COMPUTE):
            return losses(
                batch.noisy,
                batch.velocity,
                batch.sigmas,
                batch.text,
                batch.pooled,
                batch.labels,
                rotary_of(model, batch),
            )

    return of_batch


def optimizers_of(model: FluxTransformer2DModel, head: AlignmentHead) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices; AdamW for modulation, embedders, output, norms and biases."""
    matrices = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and "transformer_blocks" in name and ".norm" not in name
    ]
    chosen = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in (*model.parameters(), *head.parameters()) if id(parameter) not in chosen]
    return [
        Muon(matrices, MUON_RATE, weight_decay=0.02),
        torch.optim.AdamW(others, ADAMW_RATE, (0.9, 0.98), weight_decay=0.01, fused=True),
    ]


def train_transformer(work: Path, minutes: float, seed: int) -> None:
    """First schooling: from nothing to `work/transformer.ckpt`, on scenes of all things."""
    school(work, "transformer", build_transformer(), "latents", minutes, seed)


def train_critters(work: Path, minutes: float, seed: int) -> None:
    """Second schooling: from `work/distilled.ckpt` to `work/critters.ckpt`, on scenes of critters for the most part."""
    model = build_transformer()
    model.load_state_dict(require_checkpoint(work / "distilled.ckpt", "distilled")["averaged"])
    school(work, "critters", model, "critter-latents", minutes, seed)


def school(work: Path, stage: str, model: FluxTransformer2DModel, scenes: str, minutes: float, seed: int) -> None:
    """Trains the model into the stage's checkpoint, with a complete model in `work/snapshot` every ten minutes."""
    torch.manual_seed(seed)
    head = AlignmentHead(model.inner_dim)
    averaged = {name: value.clone() for name, value in model.state_dict().items()}
    optimizers = optimizers_of(model, head)
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    budget, step = Budget(minutes), 0
    checkpoint = work / f"{stage}.ckpt"
    state = load_checkpoint(checkpoint)
    if state is not None:
        model.load_state_dict(state["model"])
        head.load_state_dict(state["head"])
        averaged, step = state["averaged"], state["step"]
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        budget = Budget(minutes, state["seconds"])
    batches, losses_of = Batches(work, scenes, BATCH, seed), compiled_losses(model, head)
    saved_at = snapshot_at = budget.seconds
    mean = torch.zeros(2)
    while (fraction := first_says(budget.fraction)) < 1:
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * rate_at(fraction, decay=0.4)
        loss, alignment = losses_of(batches(step))
        (loss + ALIGNMENT_WEIGHT * alignment).backward()
        average_gradients([*model.parameters(), *head.parameters()])
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        average_weights(averaged, model, min(EMA_DECAY, step / (10 + step)))
        mean += torch.stack((loss.detach(), alignment.detach()))
        if rank() > 0:
            continue
        if step % 50 == 0:
            flow, labels = (mean / 50).tolist()
            say(f"step {step} loss {flow:.4f} alignment {labels:.4f} {100 * fraction:.1f} %")
            mean.zero_()
        if budget.seconds - saved_at > 180 or budget.fraction >= 1:
            saved_at = budget.seconds
            state = {
                "model": model.state_dict(),
                "head": head.state_dict(),
                "averaged": averaged,
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": step,
                "seconds": saved_at,
            }
            save_checkpoint(checkpoint, state)
        if budget.seconds - snapshot_at > 600 or budget.fraction >= 1:
            snapshot_at = budget.seconds
            assemble(work, averaged, work / "snapshot")
    if rank() == 0:
        record(work, stage, seed=seed, minutes=budget.seconds / 60, steps=step, batch=BATCH * world())


@torch.no_grad()
def average_weights(averaged: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """Exponential moving average of the weights, in place."""
    values = model.state_dict()
    torch._foreach_lerp_(list(averaged.values()), [values[name] for name in averaged], 1 - decay)
