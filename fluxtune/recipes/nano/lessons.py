"""What the judge is schooled on: scenes of one thing, of critters, of the subject, of its near misses; spoiled ones."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from random import Random

import torch
from PIL import Image
from torch import Generator, Tensor

from fluxtune.nano.critters import FORMS, PATTERNS, SUBJECT, TOPS, Critter, random_critter
from fluxtune.nano.judge import ANSWERS, NOTHING, pixels_of
from fluxtune.nano.painter import paint
from fluxtune.nano.palette import BACKGROUND_COLOURS, BACKGROUND_KINDS, COLOURS
from fluxtune.nano.scenes import ASPECTS, HeldOutPrompt, Scene, Thing, object_scene, subject_scene
from fluxtune.nano.shapes import SHAPES
from fluxtune.recipes.nano.spoil import spoiled, weathered

WEATHERED = 0.7
"""Share of the pictures that are worn as generated ones are; the others are as painted."""
UNTOLD = -100
"""The label of what is not to be learned: the colour of nothing."""


@dataclass(frozen=True)
class Lesson:
    """A scene and what it shows; `other` is set where the thing is to be spoiled: what else could stand there."""

    scene: Scene
    object: str
    subject: bool = False
    other: Thing | None = None

    @property
    def prompt(self) -> HeldOutPrompt:
        """What a prompt for this scene asks for."""
        thing, background = self.scene.things[0], self.scene.background
        return HeldOutPrompt(self.scene.caption, thing.kind, thing.colour, background.kind, background.colour)

    @property
    def labels(self) -> list[int]:
        """The right answer's index for each of the judge's heads."""
        background = self.scene.background
        colour = None if self.object == NOTHING else self.scene.things[0].colour
        right = (self.object, colour, background.kind, background.colour, self.subject)
        return [
            UNTOLD if answer is None else answers.index(answer) for answers, answer in zip(ANSWERS, right, strict=True)
        ]

    @property
    def box(self) -> tuple[float, float, float]:
        """Where the one thing is (see `JudgeNetwork`); of none, or of two, the whole picture."""
        if len(self.scene.things) != 1:
            return 0.5, 0.5, 0.5
        thing = self.scene.things[0]
        return thing.x, thing.y, thing.radius


def lesson_batch(seed: int, step: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels `[batch, 3, height, width]` of one aspect ratio, the labels of every head `[batch, heads]`, the boxes."""
    random = Random(f"judge {seed} {step}")
    generator = Generator().manual_seed(random.getrandbits(62))
    aspect = ASPECTS[0] if random.random() < 0.5 else random.choice(ASPECTS[1:])
    lessons = [lesson(random, aspect) for _ in range(size)]
    pixels = torch.stack([pixels_of(paint(each.scene)) for each in lessons])
    rows = [index for index, each in enumerate(lessons) if each.other is not None]
    if rows:
        pixels[rows] = spoiled_pixels([lessons[row] for row in rows], generator)
    worn = torch.rand(size, generator=generator) < WEATHERED
    pixels[worn] = weathered(pixels[worn], generator)
    return pixels, torch.tensor([each.labels for each in lessons]), torch.tensor([each.box for each in lessons])


def spoiled_pixels(lessons: list[Lesson], generator: Generator) -> Tensor:
    """`[lessons, 3, height, width]`: the scenes with their things made unrecognisable; all of one size."""

    def layer(things_of: Callable[[Lesson], tuple[Thing, ...]]) -> Tensor:
        scenes = [replace(each.scene, things=things_of(each)) for each in lessons]
        return torch.stack([pixels_of(paint(scene)) for scene in scenes])

    whole, empty = layer(lambda each: each.scene.things), layer(lambda each: ())
    return spoiled(whole, empty, layer(lambda each: (each.other,) if each.other else ()), generator)


def lesson(random: Random, aspect: tuple[int, int]) -> Lesson:
    """One of the kinds below, at its share."""
    draw = random.random()
    if draw < 0.36:
        return single(random, aspect)
    if draw < 0.48:
        return critter_lesson(random, aspect, random_critter(random))
    if draw < 0.60:
        return critter_lesson(random, aspect, SUBJECT)
    if draw < 0.73:
        return critter_lesson(random, aspect, near_miss(random))
    if draw < 0.76:
        return Lesson(replace(single(random, aspect).scene, things=()), NOTHING)
    if draw < 0.80:
        return two(random, aspect)
    return to_spoil(random, aspect)


def single(random: Random, aspect: tuple[int, int]) -> Lesson:
    """Any thing in any colour on any background, at any size and place."""
    background = random.choice(list(BACKGROUND_COLOURS))
    colour = another(background, COLOURS, random)
    prompt = HeldOutPrompt("", random.choice(list(SHAPES)), colour, random.choice(BACKGROUND_KINDS), background)
    scene = object_scene(prompt, random.getrandbits(40), 0, aspect)
    radius = random.uniform(0.22, 0.45)
    room = [max(0.0, 0.5 - radius * min(aspect) / side) for side in aspect]
    x, y = (0.5 + free * random.uniform(-1, 1) for free in room)
    return Lesson(replace(scene, things=(replace(scene.things[0], radius=radius, x=x, y=y),)), prompt.object)


def critter_lesson(random: Random, aspect: tuple[int, int], critter: Critter) -> Lesson:
    """The critter in any pose on any background."""
    scene = subject_scene(random.getrandbits(40), 0, aspect)
    thing = replace(scene.things[0], critter=critter, colour=critter.colour)
    return Lesson(replace(scene, things=(thing,)), "critter", critter == SUBJECT)


def near_miss(random: Random) -> Critter:
    """The subject but for one trait, or with its two colours swapped. Mouths are too small to tell apart."""
    own = SUBJECT
    changes: tuple[Callable[[], Critter], ...] = (
        lambda: replace(own, form=another(own.form, FORMS, random)),
        lambda: replace(own, colour=another(own.colour, COLOURS, random)),
        lambda: replace(own, second_colour=another(own.second_colour, COLOURS, random)),
        lambda: replace(own, pattern=another(own.pattern, PATTERNS, random)),
        lambda: replace(own, top=another(own.top, TOPS, random)),
        lambda: replace(own, eyes=2),
        lambda: replace(own, colour=own.second_colour, second_colour=own.colour),
    )
    return random.choice(changes)()


def two(random: Random, aspect: tuple[int, int]) -> Lesson:
    """Two things side by side or above each other, which no prompt about one thing asks for."""
    scene = single(random, aspect).scene
    second = single(random, aspect).scene.things[0]
    across = aspect[0] > aspect[1] or (aspect[0] == aspect[1] and random.random() < 0.5)
    things = tuple(
        replace(thing, radius=random.uniform(0.2, 0.26), x=near if across else 0.5, y=0.5 if across else near)
        for thing, near in ((scene.things[0], 0.26), (second, 0.74))
    )
    return Lesson(replace(scene, things=things), NOTHING)


def to_spoil(random: Random, aspect: tuple[int, int]) -> Lesson:
    """A thing, a critter or the subject that is to be made unrecognisable."""
    draw = random.random()
    if draw < 0.6:
        whole = single(random, aspect)
    else:
        whole = critter_lesson(random, aspect, SUBJECT if draw < 0.85 else random_critter(random))
    thing = whole.scene.things[0]
    colour = thing.colour if thing.critter is None else random.choice(list(COLOURS))
    other = replace(thing, kind=another(thing.kind, SHAPES, random), colour=colour, critter=None)
    return Lesson(whole.scene, NOTHING, other=other)


def another(value: str, values: Collection[str], random: Random) -> str:
    """One of the values, but not this one."""
    return random.choice([each for each in values if each != value])


def picture_of(pixels: Tensor) -> Image.Image:
    """`[3, height, width]` in [-1, 1] as a picture."""
    return Image.fromarray(((pixels.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy())
