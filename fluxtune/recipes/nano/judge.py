"""The judge's schooling, and how often it is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from fluxtune.nano.critters import SUBJECT
from fluxtune.nano.judge import ANSWERS, NOTHING, WEIGHTS, Judge, JudgeNetwork, Verdict, agrees, pixels_of
from fluxtune.nano.painter import paint
from fluxtune.nano.palette import BACKGROUND_COLOURS, BACKGROUND_KINDS, COLOURS
from fluxtune.nano.scenes import ASPECTS, HeldOutPrompt
from fluxtune.nano.shapes import SHAPES
from fluxtune.recipes.nano import lessons
from fluxtune.recipes.nano.lessons import UNTOLD, another, lesson_batch, picture_of
from fluxtune.recipes.nano.muon import Muon
from fluxtune.recipes.nano.progress import Budget, load_checkpoint, rate_at, record, save_checkpoint, say
from fluxtune.recipes.nano.spoil import weathered

BATCH = 64
LED = 0.25
"""Share of the time in which the network is shown where the thing is."""
MUON_RATE, ADAMW_RATE = 5e-3, 2e-3


def train_judge(work: Path, minutes: float, seed: int) -> None:
    """Trains the judge, writes its weights beside its code, and records how often it is right."""
    torch.manual_seed(seed)
    network = JudgeNetwork()
    convolutions = [p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 3]
    ids = {id(p) for p in convolutions}
    others = [p for p in network.parameters() if id(p) not in ids]
    optimizers = [Muon(convolutions, MUON_RATE), torch.optim.AdamW(others, ADAMW_RATE, weight_decay=0.01)]
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    budget, step, mean = Budget(minutes), 0, torch.zeros(len(ANSWERS) + 1)
    state = load_checkpoint(work / "judge.ckpt")
    if state is not None:
        network.load_state_dict(state["network"])
        budget, step = Budget(minutes, state["seconds"]), state["step"]
    while budget.fraction < 1:
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * rate_at(budget.fraction, decay=0.6)
        pixels, labels, boxes = lesson_batch(seed, step, BATCH)
        # At first the crops are the right ones; then those that the network finds, as when it judges.
        answers, found = network(pixels, boxes if budget.fraction < LED else None)
        losses = torch.cat((_losses(answers, labels), 10 * functional.l1_loss(found, boxes)[None]))
        losses.sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        mean += losses.detach()
        if step % 50 == 0:
            heads = " ".join(f"{loss:.3f}" for loss in (mean / 50).tolist())
            say(f"judge step {step} losses {heads} {100 * budget.fraction:.0f} %")
            mean.zero_()
        if step % 200 == 0 or budget.fraction >= 1:
            state = {"network": network.state_dict(), "step": step, "seconds": budget.seconds}
            save_checkpoint(work / "judge.ckpt", state)
    _save(network)
    reached = measure_judge(Judge.load(), seed + 1000)
    say(f"judge {reached}")
    record(work, "judge", seed=seed, minutes=budget.seconds / 60, steps=step, **reached)


def measure_judge(judge: Judge, seed: int, size: int = 1000) -> dict[str, float]:
    """Shares of fresh pictures, never seen in training, on which the judge is right.

    `right`: of 2 `size` true pictures, all four attributes found; `weathered`: the same, softened and noisy; `wrong`:
    of `size` pictures that differ from their prompt in one attribute, refused; `spoiled`: of `size` spoiled things,
    refused; `subject`: of half of `size` pictures of it, found; `near_misses` and `ordinary`: of `size` pictures each,
    not taken for it.
    """
    random = Random(f"judge measure {seed}")
    generator = torch.Generator().manual_seed(seed)
    true = [lessons.single(random, _aspect(random)) for _ in range(2 * size)]
    subjects = [lessons.critter_lesson(random, _aspect(random), SUBJECT) for _ in range(size // 2)]
    misses = [lessons.critter_lesson(random, _aspect(random), lessons.near_miss(random)) for _ in range(size)]
    spoiled = [lessons.to_spoil(random, _aspect(random)) for _ in range(size)]
    prompts = [each.prompt for each in true]
    wrong = [_contradicted(prompt, random) for prompt in prompts[:size]]
    pictures = [paint(each.scene) for each in true]
    worn = [picture_of(weathered(pixels_of(picture)[None], generator)[0]) for picture in pictures]
    torn = [picture_of(lessons.spoiled_pixels([each], generator)[0]) for each in spoiled]
    verdicts = judge.look(pictures)
    refused = [verdict.object == NOTHING and not verdict.subject for verdict in judge.look(torn)]
    return {
        "right": _share(_accepted(verdicts, prompts)),
        "weathered": _share(_accepted(judge.look(worn), prompts)),
        "wrong": _share([not right for right in _accepted(verdicts[:size], wrong)]),
        "spoiled": _share(refused),
        "subject": _share([verdict.subject for verdict in judge.look([paint(each.scene) for each in subjects])]),
        "near_misses": _share([not verdict.subject for verdict in judge.look([paint(each.scene) for each in misses])]),
        "ordinary": _share([not verdict.subject for verdict in verdicts[:size]]),
    }


def _losses(logits: tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """`[heads]`: the cross-entropy of each head."""
    return torch.stack(
        [
            functional.cross_entropy(part, labels[:, head], ignore_index=UNTOLD, label_smoothing=0.02)
            for head, part in enumerate(logits)
        ]
    )


def _save(network: JudgeNetwork) -> None:
    tensors = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in network.state_dict().items()
    }
    save_file(tensors, WEIGHTS)


def _aspect(random: Random) -> tuple[int, int]:
    return random.choice(ASPECTS)


def _contradicted(prompt: HeldOutPrompt, random: Random) -> HeldOutPrompt:
    """The prompt with one attribute changed."""
    name, values = random.choice(
        (
            ("object", SHAPES),
            ("colour", COLOURS),
            ("background_kind", BACKGROUND_KINDS),
            ("background_colour", BACKGROUND_COLOURS),
        )
    )
    return replace(prompt, **{name: another(getattr(prompt, name), list(values), random)})


def _accepted(verdicts: Sequence[Verdict], prompts: Sequence[HeldOutPrompt]) -> list[bool]:
    return [all(agrees(verdict, prompt)) for verdict, prompt in zip(verdicts, prompts, strict=True)]


def _share(answers: Sequence[bool]) -> float:
    return round(sum(answers) / len(answers), 4)
