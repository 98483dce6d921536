"""Guidance distillation: one forward with guidance g learns to equal classifier-free guidance of scale g."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from fluxtune.recipes.nano.batches import Batch, Batches
from fluxtune.recipes.nano.export import assemble
from fluxtune.recipes.nano.progress import Budget, load_checkpoint, record, save_checkpoint, say
from fluxtune.recipes.nano.transformer import BATCH, build_transformer, rotary_of, velocity_and_states

SCALES = (1.0, 5.0)
RATE = 4e-4
EMA_DECAY = 0.99


def distill(work: Path, minutes: float, seed: int) -> None:
    """From `work/transformer.ckpt` to `work/distilled.ckpt` (Meng et al., 2022, arXiv 2210.03142, stage one)."""
    pretrained = load_checkpoint(work / "transformer.ckpt")
    if pretrained is None:
        raise FileNotFoundError(f"{work / 'transformer.ckpt'}: run the transformer stage first")
    teacher, student = build_transformer(), build_transformer()
    teacher.load_state_dict(pretrained["averaged"])
    teacher.requires_grad_(False)
    student.load_state_dict(pretrained["averaged"])
    averaged = {name: value.clone() for name, value in student.state_dict().items()}
    batches = Batches(work, BATCH, seed + 1)
    target_of, loss_of = _compiled(teacher, student)
    optimizer = torch.optim.AdamW(student.parameters(), RATE, (0.9, 0.98), weight_decay=0.0)
    random = torch.Generator().manual_seed(seed)
    budget, step, mean = Budget(minutes), 0, 0.0
    while budget.fraction < 1:
        optimizer.param_groups[0]["lr"] = RATE * budget.rate(decay=0.5)
        batch = batches(step)
        guidance = SCALES[0] + (SCALES[1] - SCALES[0]) * torch.rand(len(batch.sigmas), generator=random)
        # One picture in eight keeps scale 1, the plain conditional that LoRA training starts from.
        guidance[: len(guidance) // 8] = 1.0
        target = target_of(batch, guidance, batches.empty_text, batches.empty_pooled)
        loss = loss_of(batch, guidance, target)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        values = student.state_dict()
        torch._foreach_lerp_(
            list(averaged.values()), [values[name] for name in averaged], 1 - min(EMA_DECAY, step / (10 + step))
        )
        mean += loss.item()
        if step % 50 == 0:
            say(f"distill step {step} loss {mean / 50:.5f} {100 * budget.fraction:.1f} %")
            mean = 0.0
    save_checkpoint(work / "distilled.ckpt", {"averaged": averaged, "step": step})
    assemble(work, averaged, work / "snapshot")
    record(work, "distill", seed=seed, minutes=budget.seconds / 60, steps=step)


def _compiled(
    teacher: FluxTransformer2DModel, student: FluxTransformer2DModel
) -> tuple[Callable[[Batch, Tensor, Tensor, Tensor], Tensor], Callable[[Batch, Tensor, Tensor], Tensor]]:
    @torch.compile(dynamic=False)
    def guided(
        noisy: Tensor, sigmas: Tensor, guidance: Tensor, text: Tensor, pooled: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> Tensor:
        ones = torch.ones_like(sigmas).repeat(2)
        both = velocity_and_states(teacher, noisy.repeat(2, 1, 1), sigmas.repeat(2), ones, text, pooled, rotary)[0]
        with_caption, without = both.chunk(2)
        return without + guidance[:, None, None] * (with_caption - without)

    @torch.compile(dynamic=False)
    def loss(
        noisy: Tensor,
        sigmas: Tensor,
        guidance: Tensor,
        text: Tensor,
        pooled: Tensor,
        rotary: tuple[Tensor, Tensor],
        target: Tensor,
    ) -> Tensor:
        predicted = velocity_and_states(student, noisy, sigmas, guidance, text, pooled, rotary)[0]
        return functional.mse_loss(predicted, target)

    def target_of(batch: Batch, guidance: Tensor, empty_text: Tensor, empty_pooled: Tensor) -> Tensor:
        text = torch.cat((batch.text, empty_text.expand_as(batch.text)))
        pooled = torch.cat((batch.pooled, empty_pooled.expand_as(batch.pooled)))
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            return guided(batch.noisy, batch.sigmas, guidance, text, pooled, rotary_of(teacher, batch))

    def loss_of(batch: Batch, guidance: Tensor, target: Tensor) -> Tensor:
        rotary = rotary_of(student, batch)
        with sdpa_kernel(SDPBackend.MATH):
            return loss(batch.noisy, batch.sigmas, guidance, batch.text, batch.pooled, rotary, target)

    return target_of, loss_of
