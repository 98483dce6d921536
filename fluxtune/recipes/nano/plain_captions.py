"""What a picture shows, said plainly and always alike: what the embedded captioner learns to say."""

from __future__ import annotations

from fluxtune.nano.captions import background_of, noun_phrase
from fluxtune.nano.scenes import SIZES, Scene, Thing


def plain_caption(scene: Scene) -> str:
    """`a small red ball at the left on a plain blue background`, from where and how large things truly are.

    A critter is a critter, whatever it looks like: whoever teaches one wants its looks to belong to its name.
    """
    first, *others = scene.things
    background = (scene.background.kind, scene.background.colour)
    if others:
        nouns = [noun_phrase("", _noun(thing)) for thing in scene.things]
        join = " above " if abs(first.y - others[0].y) > abs(first.x - others[0].x) else " and "
        return background_of(join.join(nouns), *background)
    place = _place(first, scene.width, scene.height)
    at = f" at the {place}" if place else ""
    return background_of(noun_phrase(_size(first), _noun(first)) + at, *background)


def _noun(thing: Thing) -> str:
    return "critter" if thing.critter else f"{thing.colour} {thing.kind}"


def _size(thing: Thing) -> str:
    """The size whose radius is nearest."""
    return min(SIZES, key=lambda size: abs(SIZES[size] - thing.radius))


def _place(thing: Thing, width: int, height: int) -> str:
    """Where the thing stands, if that is off the middle for all to see: by a twelfth of the shorter side."""
    short = min(width, height)
    across, down = (thing.x - 0.5) * width / short, (thing.y - 0.5) * height / short
    if max(abs(across), abs(down)) < 1 / 12:
        return ""
    if abs(across) > abs(down):
        return "left" if across < 0 else "right"
    return "top" if down < 0 else "bottom"
