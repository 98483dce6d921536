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
_SEEN = 64
"""Side in pixels of what each part of the network looks at."""


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
    """190,000 weights. One part looks at the whole picture, for the background and for where the thing is; the other
    looks at a crop that the thing fills, whatever its size and place."""

    def __init__(self) -> None:
        super().__init__()
        self.scene = nn.Sequential(
            _layer(3, 16, kernel=4, stride=2),
            _layer(16, 24, stride=2),
            _layer(24, 32, stride=2),
            _Residual(32),
            _layer(32, 48, stride=2),
            nn.Flatten(),
            nn.Linear(48 * 16, 3 + len(BACKGROUND_KINDS) + len(BACKGROUND_COLOURS)),
        )
        self.thing = nn.Sequential(
            _layer(3, 24, kernel=4, stride=2),
            _layer(24, 40, stride=2),
            _layer(40, 56, stride=2),
            _Residual(56),
            _layer(56, 64, stride=2),
            nn.Flatten(),
            nn.Linear(64 * 16, 48),
            nn.SiLU(),
            nn.Linear(48, len(KINDS) + len(COLOURS) + 2),
        )

    def forward(self, pixels: Tensor, boxes: Tensor | None = None) -> tuple[tuple[Tensor, ...], Tensor]:
        """`[batch, 3, height, width]` in [-1, 1] → for each of `ANSWERS` its logits `[batch, answers]`, and the boxes.

        Boxes `[batch, 3]` are where the thing is: its centre across and down and its radius, as fractions of width,
        height and shorter side. Those found are used for the crop, unless others are given.
        """
        small = functional.interpolate(pixels, (_SEEN, _SEEN), mode="bilinear", antialias=True, align_corners=False)
        seen = self.scene(small)
        found = 0.5 + 0.25 * seen[:, :3]
        crops = crop(pixels, found.detach() if boxes is None else boxes)
        kinds, colours, subject = self.thing(crops).split([len(KINDS), len(COLOURS), 2], dim=1)
        background_kinds, background_colours = seen[:, 3:].split(
            [len(BACKGROUND_KINDS), len(BACKGROUND_COLOURS)], dim=1
        )
        return (kinds, colours, background_kinds, background_colours, subject), found


def crop(pixels: Tensor, boxes: Tensor) -> Tensor:
    """`[batch, 3, 64, 64]`: each picture's square about its box, with a margin of a tenth."""
    height, width = pixels.shape[2:]
    short = min(height, width)
    radius = 1.1 * boxes[:, 2].clamp(0.15, 0.6)
    zero = torch.zeros_like(radius)
    # Affine maps from the crop's coordinates to the picture's, both in [-1, 1].
    across = torch.stack((2 * radius * short / width, zero, 2 * boxes[:, 0] - 1), dim=1)
    down = torch.stack((zero, 2 * radius * short / height, 2 * boxes[:, 1] - 1), dim=1)
    grid = functional.affine_grid(
        torch.stack((across, down), dim=1), [len(pixels), 3, _SEEN, _SEEN], align_corners=False
    )
    return functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


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
        chosen = [logits.argmax(dim=1).tolist() for logits in self._network(pixels)[0]]
        return [
            Verdict(*(answers[index] for answers, index in zip(ANSWERS, row, strict=True)))  # type: ignore[arg-type]
            for row in zip(*chosen, strict=True)
        ]


def pixels_of(picture: Image.Image) -> Tensor:
    """`[3, height, width]` in [-1, 1]."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = _layer(width, width)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.layer(features)


def _layer(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU())
