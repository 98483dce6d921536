"""The phrases that name a scene: at most eighteen words, most of them far fewer."""

from __future__ import annotations

from random import Random

from fluxtune.nano.critters import Critter


def noun_phrase(size: str, noun: str) -> str:
    """`a small red ball`: the article, the size unless it is the usual one, the noun with its colour."""
    words = f"{size} {noun}".strip()
    article = "an" if words[0] in "aeiou" else "a"
    return f"{article} {words}"


def background_of(phrase: str, kind: str, colour: str) -> str:
    """The standard phrase with its background: `a red ball on a plain blue background`."""
    return f"{phrase} on a {kind} {colour} background"


def whole(noun: str, place: str, kind: str, colour: str, random: Random) -> str:
    """A caption in one of several phrasings; now and then one that does not tell the background."""
    at = f" at the {place}" if place else ""
    phrasings = (
        (0.42, f"{noun}{at} on a {kind} {colour} background"),
        (0.16, f"{noun}{at}, {kind} {colour} background"),
        (0.14, f"a {kind} {colour} background with {noun}{at}"),
        (0.12, f"a picture of {noun}{at} on {kind} {colour}"),
        (0.08, f"{noun}{at}, {colour} background"),
        (0.08, f"{noun}{at}"),
    )
    return random.choices([text for _, text in phrasings], [weight for weight, _ in phrasings])[0]


def description(critter: Critter, random: Random) -> str:
    """A critter by its looks: always its colour, most of the rest most of the time."""
    form = critter.form if random.random() < 0.4 else ""
    eyes = "" if form or random.random() < 0.3 else ("one-eyed" if critter.eyes == 1 else "two-eyed")
    marks = []
    if critter.pattern != "plain" and random.random() < 0.85:
        marks.append(f"{critter.second_colour} {critter.pattern}")
    if random.random() < 0.6:
        marks.append(critter.top if critter.pattern != "plain" else f"{critter.second_colour} {critter.top}")
    looks = " with " + " and ".join(marks) if marks else ""
    return " ".join(word for word in (form, critter.colour, eyes, "critter") if word) + looks
