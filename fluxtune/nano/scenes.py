"""What a picture shows, as data: each scene is a pure function of (seed, index)."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from random import Random

from fluxtune.nano import TRIGGER, captions
from fluxtune.nano.critters import NOUNS, SUBJECT, Critter, Pose, invented_noun, random_critter
from fluxtune.nano.palette import BACKGROUND_COLOURS, BACKGROUND_KINDS, COLOURS
from fluxtune.nano.shapes import SHAPES

# (width, height) in pixels: all of about 64 tokens of 16 x 16 pixels.
ASPECTS = ((128, 128), (112, 144), (144, 112), (96, 160), (160, 96))
SIZES = {"small": 0.24, "": 0.33, "large": 0.43}
PLACES = {"": (0.0, 0.0), "left": (-1.0, 0.0), "right": (1.0, 0.0), "top": (0.0, -1.0), "bottom": (0.0, 1.0)}


@dataclass(frozen=True)
class Thing:
    """One object or critter: centre and radius are fractions of the picture's width, height, shorter side."""

    kind: str
    colour: str
    x: float
    y: float
    radius: float
    tilt: float = 0.0
    mirrored: bool = False
    critter: Critter | None = None
    pose: Pose = field(default_factory=Pose)


@dataclass(frozen=True)
class Background:
    kind: str
    colour: str
    phase: float = 0.5
    """Shifts and leans the pattern, in [0, 1]."""


@dataclass(frozen=True)
class Scene:
    width: int
    height: int
    background: Background
    things: tuple[Thing, ...]
    caption: str


@dataclass(frozen=True)
class HeldOutPrompt:
    """A caption whose combination of object, colour and background colour training never shows."""

    prompt: str
    object: str
    colour: str
    background_kind: str
    background_colour: str


@dataclass(frozen=True)
class Mix:
    """What pretraining shows how often: the share of pairs, of critters among single things, and of sizes."""

    pairs: float = 0.17
    critters: float = 0.32
    sizes: tuple[str, ...] = ("", "", "small", "large")


ALL_THINGS = Mix()
MOSTLY_CRITTERS = Mix(pairs=0.1, critters=0.65, sizes=("", "small", "small", "large"))


def is_held_out(kind: str, colour: str, background_colour: str) -> bool:
    """Whether the combination is kept from training: one of eight, picked by its hash."""
    digest = sha256(f"nano {kind} {colour} {background_colour}".encode()).digest()
    return digest[0] % 8 == 0


def held_out_prompts(count: int = 240) -> list[HeldOutPrompt]:
    """`count` prompts over the held-out combinations, each with a background kind, in a fixed mixed order."""
    prompts = [
        HeldOutPrompt(
            captions.background_of(captions.noun_phrase("", f"{colour} {kind}"), background_kind, background_colour),
            kind,
            colour,
            background_kind,
            background_colour,
        )
        for kind in SHAPES
        for colour in COLOURS
        for background_colour in BACKGROUND_COLOURS
        if colour != background_colour and is_held_out(kind, colour, background_colour)
        for background_kind in BACKGROUND_KINDS
    ]
    Random("nano held-out prompts").shuffle(prompts)
    if count > len(prompts):
        raise ValueError(f"{count} held-out prompts wanted, there are {len(prompts)}")
    return prompts[:count]


def training_scene(seed: int, index: int, aspect: tuple[int, int] | None = None, mix: Mix = ALL_THINGS) -> Scene:
    """A captioned scene for pretraining, never a held-out combination, never near the demo's subject."""
    random = Random(f"nano scene {seed} {index}")
    width, height = aspect or random.choice(ASPECTS)
    while True:
        scene = _random_scene(random, width, height, mix)
        combinations = [(thing.kind, thing.colour, scene.background.colour) for thing in scene.things]
        if not any(is_held_out(*combination) for combination in combinations):
            return scene


def object_scene(prompt: HeldOutPrompt, seed: int, index: int, aspect: tuple[int, int] = (128, 128)) -> Scene:
    """A true picture of a held-out prompt: what a judge must accept."""
    random = Random(f"nano truth {seed} {index}")
    width, height = aspect
    thing = _thing(random, prompt.object, prompt.colour, "", "", width, height)
    background = Background(prompt.background_kind, prompt.background_colour, random.random())
    return Scene(width, height, background, (thing,), prompt.prompt)


def subject_scene(
    seed: int,
    index: int,
    aspect: tuple[int, int] = (128, 128),
    background: Background | None = None,
    trigger: str = TRIGGER,
    placement: tuple[str, str] | None = None,
) -> Scene:
    """The demo's subject in a pose and (unless given) a background and a placement, size and place, picked by
    (seed, index)."""
    random = Random(f"nano subject {seed} {index}")
    width, height = aspect
    colour = random.choice(list(BACKGROUND_COLOURS))
    background = background or Background(random.choice(BACKGROUND_KINDS), colour, random.random())
    size, place = placement or (random.choice(("", "", "small", "large")), random.choice(list(PLACES)))
    thing = _thing(random, "critter", SUBJECT.colour, size, place, width, height, SUBJECT)
    noun = captions.noun_phrase(size, trigger)
    caption = captions.whole(noun, place, background.kind, background.colour, random)
    return Scene(width, height, background, (thing,), caption)


def _random_scene(random: Random, width: int, height: int, mix: Mix) -> Scene:
    background = Background(random.choice(BACKGROUND_KINDS), random.choice(list(BACKGROUND_COLOURS)), random.random())
    if random.random() < mix.pairs:
        return _pair(random, width, height, background)
    size = random.choice(mix.sizes)
    place = random.choice(list(PLACES)) if random.random() < 0.6 else ""
    if random.random() < mix.critters:
        thing, noun = _critter_and_noun(random, size, place, width, height, background)
    else:
        kind, colour = random.choice(list(SHAPES)), _colour_against(random, background)
        thing = _thing(random, kind, colour, size, place, width, height)
        noun = captions.noun_phrase(size, f"{colour} {kind}")
    caption = captions.whole(noun, place, background.kind, background.colour, random)
    return Scene(width, height, background, (thing,), caption)


def _critter_and_noun(
    random: Random, size: str, place: str, width: int, height: int, background: Background
) -> tuple[Thing, str]:
    """A critter under one of its names: its description, plain "critter", its noun, or a noun that is nobody's."""
    way = random.random()
    while True:
        noun = random.choice(list(NOUNS))
        critter = NOUNS[noun] if 0.5 <= way < 0.9 else random_critter(random)
        if critter.colour != background.colour:
            break
    if way < 0.42:
        words = captions.description(critter, random)
    elif way < 0.5:
        words = "critter"
    elif way < 0.9:
        words = noun
    else:
        words = invented_noun(random)
    thing = _thing(random, "critter", critter.colour, size, place, width, height, critter)
    return thing, captions.noun_phrase(size, words)


def _pair(random: Random, width: int, height: int, background: Background) -> Scene:
    """Two things: beside each other in the order of the caption, or the first above the second."""
    kinds = random.sample([*SHAPES, "critter"], 2)
    above = height > width or (height == width and random.random() < 0.4)
    colours: list[str] = []
    while len(set(colours)) < 2:
        colours = [_colour_against(random, background) for _ in kinds]
    things = []
    for kind, colour, side in zip(kinds, colours, (-1, 1), strict=True):
        critter = None
        while kind == "critter" and (critter is None or critter.colour != colour):
            critter = random_critter(random)
        near, far = 0.5 + random.uniform(-0.04, 0.04), 0.5 + side * random.uniform(0.22, 0.26)
        x, y = (near, far) if above else (far, near)
        room = max(width, height) / min(width, height)
        radius = min(0.34, 0.235 * room) * random.uniform(0.94, 1.04)
        things.append(_posed(random, kind, colour, x, y, radius, critter))
    first, second = (captions.noun_phrase("", f"{colour} {kind}") for kind, colour in zip(kinds, colours, strict=True))
    join = "above" if above else random.choice(("and", "beside", "left of"))
    caption = captions.background_of(f"{first} {join} {second}", background.kind, background.colour)
    return Scene(width, height, background, tuple(things), caption)


def _colour_against(random: Random, background: Background) -> str:
    return random.choice([colour for colour in COLOURS if colour != background.colour])


def _thing(
    random: Random,
    kind: str,
    colour: str,
    size: str,
    place: str,
    width: int,
    height: int,
    critter: Critter | None = None,
) -> Thing:
    radius = SIZES[size] * random.uniform(0.95, 1.05)
    short = min(width, height)
    towards_x, towards_y = PLACES[place]
    # How far the centre may move before the thing leaves the picture, as a fraction of each side.
    room_x, room_y = (max(0.0, 0.5 - (radius + 0.02) * short / side) for side in (width, height))
    x = 0.5 + room_x * (towards_x * random.uniform(0.8, 1.0) if towards_x else random.uniform(-0.2, 0.2))
    y = 0.5 + room_y * (towards_y * random.uniform(0.8, 1.0) if towards_y else random.uniform(-0.2, 0.2))
    return _posed(random, kind, colour, x, y, radius, critter)


def _posed(random: Random, kind: str, colour: str, x: float, y: float, radius: float, critter: Critter | None) -> Thing:
    return Thing(
        kind,
        colour,
        x,
        y,
        radius,
        tilt=random.gauss(0, 0.1 if critter else 0.06),
        # The moon's crescent and the cup's handle keep their side, so that a kind has one silhouette.
        mirrored=kind in ("fish", "car", "boat") and random.random() < 0.5,
        critter=critter,
        pose=Pose(arms=random.uniform(-1, 1), gaze=random.uniform(-1, 1)),
    )
