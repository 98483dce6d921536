"""Guidance distillation: one forward with guidance g learns to equal classifier-free guidance of scale g."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from fluxtune.recipes.nano.architecture import build_transformer
from fluxtune.recipes.nano.batches import Batch, Batches
from fluxtune.recipes.nano.export import assemble
from fluxtune.recipes.nano.progress import COMPUTE, Budget, rate_at, record, require_checkpoint, save_checkpoint, say
from fluxtune.recipes.nano.transformer import (
    BATCH,
    average_weights,
    rotary_of,
    velocity_and_states,
)
from fluxtune.recipes.nano.workers import average_gradients, first_says, rank, world

SCALES = (1.0, 5.0)
RATE = 4e-4
EMA_DECAY = 0.99


def distill_first(work: Path, minutes: float, seed: int) -> None:
    """After the first schooling: from `work/transformer.ckpt` to `work/distilled.ckpt`."""
    distill(work, "transformer", "distilled", "latents", minutes, seed)


def distill_again(work: Path, minutes: float, seed: int) -> None:
    """After the second schooling: from `work/critters.ckpt` to `work/finished.ckpt`."""
    distill(work, "critters", "finished", "critter-latents", minutes, seed)


def distill(work: Path, source: str, result: str, scenes: str, minutes: float, seed: int) -> None:
    """From the checkpoint `source` to the checkpoint `result` (Meng et al., 2022, arXiv 2210.03142, stage one)."""
    pretrained = require_checkpoint(work / f"{source}.ckpt", source)
    teacher, student = build_transformer(), build_transformer()
    teacher.load_state_dict(pretrained["averaged"])
    teacher.requires_grad_(False)
    student.load_state_dict(pretrained["averaged"])
    averaged = {name: value.clone() for name, value in student.state_dict().items()}
    batches = Batches(work, scenes, BATCH, seed + 1)
    optimizer = torch.optim.AdamW(student.parameters(), RATE, (0.9, 0.98), weight_decay=0.0)
    random = torch.Generator().manual_seed(seed * 16 + rank())
    budget, step, mean = Budget(minutes), 0, 0.0
    while (fraction := first_says(budget.fraction)) < 1:
        optimizer.param_groups[0]["lr"] = RATE * rate_at(fraction, decay=0.6)
        batch = batches(step)
        guidance = SCALES[0] + (SCALES[1] - SCALES[0]) * torch.rand(BATCH, generator=random)
        # One picture in eight keeps scale 1, the plain conditional that LoRA training starts from.
        guidance[: BATCH // 8] = 1.0
        rotary = rotary_of(student, batch)
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", dtype=COMPUTE):
            target = guided_velocity(teacher, batch, guidance, batches.empty_text, batches.empty_pooled)
            predicted, _ = velocity_and_states(
                student, batch.noisy, batch.sigmas, guidance, batch.text, batch.pooled, rotary
            )
            loss = functional.mse_loss(predicted, target)
            loss.backward()
        average_gradients(student.parameters())
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        average_weights(averaged, student, min(EMA_DECAY, step / (10 + step)))
        mean += loss.item()
        if step % 25 == 0 and rank() == 0:
            say(f"distill step {step} loss {mean / 25:.5f} {100 * fraction:.1f} %")
            mean = 0.0
    if rank() == 0:
        save_checkpoint(work / f"{result}.ckpt", {"averaged": averaged, "step": step})
        assemble(work, averaged, work / "snapshot")
        record(work, result, seed=seed, minutes=budget.seconds / 60, steps=step, batch=BATCH * world())


@torch.no_grad()
def guided_velocity(
    teacher: FluxTransformer2DModel, batch: Batch, guidance: Tensor, empty_text: Tensor, empty_pooled: Tensor
) -> Tensor:
    """Classifier-free guidance (Ho and Salimans, 2022): v(empty) + g (v(caption) - v(empty))."""
    text = torch.cat((batch.text, empty_text.expand_as(batch.text)))
    pooled = torch.cat((batch.pooled, empty_pooled.expand_as(batch.pooled)))
    noisy, sigmas = batch.noisy.repeat(2, 1, 1), batch.sigmas.repeat(2)
    ones, rotary = torch.ones_like(sigmas), rotary_of(teacher, batch)
    both, _ = velocity_and_states(teacher, noisy, sigmas, ones, text, pooled, rotary)
    with_caption, without = both.chunk(2)
    return without + guidance[:, None, None] * (with_caption - without)
