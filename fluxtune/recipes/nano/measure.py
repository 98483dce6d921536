"""Pictures from the stock pipeline, many at a time, and how often they show what was asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline
from PIL import Image

from fluxtune.nano.judge import Verdict, agrees
from fluxtune.nano.scenes import HeldOutPrompt

STEPS, GUIDANCE, SIDE = 20, 3.5, 128
ATTRIBUTES = ("object", "colour", "background_kind", "background_colour")

_BATCH = 20


def open_pipeline(folder: Path) -> Any:
    """The model as anyone loads it, in float32 and without its progress bar."""
    pipeline = FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pictures_of(pipeline: Any, prompts: Sequence[str], seed: int, steps: int = STEPS) -> list[Image.Image]:
    """One picture of 128 x 128 pixels a prompt; each has its own noise, the same whatever pipeline paints it."""
    pictures: list[Image.Image] = []
    for first in range(0, len(prompts), _BATCH):
        part = list(prompts[first : first + _BATCH])
        noises = [torch.Generator().manual_seed(seed * 1_000_003 + first + index) for index in range(len(part))]
        pictures += pipeline(
            part,
            height=SIDE,
            width=SIDE,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            max_sequence_length=pipeline.tokenizer_2.model_max_length,
            generator=noises,
        ).images
    return pictures


def shares(verdicts: Sequence[Verdict], prompts: Sequence[HeldOutPrompt]) -> dict[str, float]:
    """For each attribute the share of pictures that show it as asked, and the share that show all four."""
    right = [agrees(verdict, prompt) for verdict, prompt in zip(verdicts, prompts, strict=True)]
    counts = {name: sum(row[index] for row in right) for index, name in enumerate(ATTRIBUTES)}
    counts["all"] = sum(all(row) for row in right)
    return {name: round(count / len(right), 4) for name, count in counts.items()}
