"""Tells what a picture shows: a small convolutional network, trained on painted scenes, whole ones and spoiled ones.

It measures the embedded model and the demo. Nothing is ever trained on what it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from fluxtune.nano.painter import KINDS
from fluxtune.nano.palette import BACKGROUND_COLOURS, BACKGROUND_KINDS, COLOURS
from fluxtune.nano.scenes import HeldOutPrompt

WEIGHTS = Path(__file__).with_name("judge.safetensors")
NOTHING = KINDS[0]
ANSWERS = (KINDS, tuple(COLOURS), BACKGROUND_KINDS, tuple(BACKGROUND_COLOURS), (False, True))
"""What each head chooses from: object, its colour, background kind, background colour, whether it is the subject."""

_BATCH = 50


@dataclass(frozen=True)
class Verdict:
    """What one picture shows. `object` is one of `KINDS`; "nothing" stands for all that is no whole single thing."""

    object: str
    colour: str
    background_kind: str
    background_colour: str
    subject: bool


def agrees(verdict: Verdict, prompt: HeldOutPrompt) -> tuple[bool, bool, bool, bool]:
    """Whether the picture shows the object, its colour, the background's kind and colour that the prompt asks for.

    What shows no whole thing has no colour either.
    """
    return (
        verdict.object == prompt.object,
        verdict.colour == prompt.colour and verdict.object != NOTHING,
        verdict.background_kind == prompt.background_kind,
        verdict.background_colour == prompt.background_colour,
    )


class JudgeNetwork(nn.Module):
    """170,000 weights; takes any size, since what it sees is pooled over the picture before it decides."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(
            _layer(3, 24, kernel=4, stride=2),
            _layer(24, 32, stride=2),
            _layer(32, 48, stride=2),
            _Residual(48),
            _layer(48, 64, stride=2),
            _Residual(64, dilation=2),
        )
        self.whole = _layer(64, 96, stride=2)
        self.heads = nn.Linear(2 * (64 + 96), sum(map(len, ANSWERS)))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """`[batch, 3, height, width]` in [-1, 1] → for each of `ANSWERS` its logits `[batch, answers]`."""
        parts = self.parts(pixels)
        whole = self.whole(parts)
        pooled = [pool(features) for features in (parts, whole) for pool in (_mean, _maximum)]
        return self.heads(torch.cat(pooled, dim=1)).split([len(answers) for answers in ANSWERS], dim=1)


class Judge:
    """A trained network and the words for what it sees."""

    def __init__(self, network: JudgeNetwork) -> None:
        self._network = network.eval().requires_grad_(False)

    @classmethod
    def load(cls, file: Path = WEIGHTS) -> Judge:
        """The judge that ships with the embedded model."""
        network = JudgeNetwork()
        network.load_state_dict(
            {name: value.float() if value.is_floating_point() else value for name, value in load_file(file).items()}
        )
        return cls(network)

    def look(self, pictures: Sequence[Image.Image]) -> list[Verdict]:
        """A verdict for each picture, in their order; any sizes."""
        verdicts: dict[int, Verdict] = {}
        for size in {picture.size for picture in pictures}:
            same = [index for index, picture in enumerate(pictures) if picture.size == size]
            for first in range(0, len(same), _BATCH):
                part = same[first : first + _BATCH]
                pixels = torch.stack([pixels_of(pictures[index]) for index in part])
                verdicts.update(zip(part, self._verdicts(pixels), strict=True))
        return [verdicts[index] for index in range(len(pictures))]

    @torch.inference_mode()
    def _verdicts(self, pixels: Tensor) -> list[Verdict]:
        chosen = [logits.argmax(dim=1).tolist() for logits in self._network(pixels)]
        return [
            Verdict(*(answers[index] for answers, index in zip(ANSWERS, row, strict=True)))  # type: ignore[arg-type]
            for row in zip(*chosen, strict=True)
        ]


def pixels_of(picture: Image.Image) -> Tensor:
    """`[3, height, width]` in [-1, 1]."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1


class _Residual(nn.Module):
    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        self.layer = _layer(width, width, dilation=dilation)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.layer(features)


def _layer(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU())


def _mean(features: Tensor) -> Tensor:
    return features.mean(dim=(2, 3))


def _maximum(features: Tensor) -> Tensor:
    return functional.adaptive_max_pool2d(features, 1).flatten(1)
