"""Which pictures of a data set go into one directory: those of one source folder about which one thing can be said.

Trainers say repeats, kind, masks and prompts of a directory, and some read the directories within it while others do
not; so each group has a directory of its own, beside the others.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fluxtune.config.dataset import DatasetConfig
from fluxtune.dataset.captions import PLACEHOLDER, has_trigger, tidy
from fluxtune.dataset.folder import Item, folder_path, is_subject
from fluxtune.dataset.masks import BESIDE
from fluxtune.dataset.mending import safe_name

MASKS = "-masks"
"""What the directory of a group's masks is called after its own."""

_LONGEST = 255 - len(".jpeg")
"""Bytes of a picture's name without its ending: what file systems take."""


@dataclass(frozen=True)
class Traits:
    """What a layout can say, where that decides which pictures go together.

    Attributes:
        trigger: it knows a trigger word; in others a prefix of the captions puts the word in front of them.
        prompts: it knows prefixes and captions for all of a directory; in others they are written into the captions.
        class_word: it knows what regularization pictures without a caption are trained on.
        alpha: it takes a picture's transparency for its mask.
        some_masks: some pictures of a directory may have a mask and others none.
        masks_beside: masks lie beside their pictures.
        whole_mask_names: a mask has the name of its picture to the ending, whatever it is in.
        mask_sizes: a mask has the size of its picture.
        picture_endings, mask_endings: what it reads.
    """

    trigger: bool
    prompts: bool
    class_word: bool
    alpha: bool
    some_masks: bool
    masks_beside: bool
    whole_mask_names: bool
    mask_sizes: bool
    picture_endings: tuple[str, ...]
    mask_endings: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where a picture goes: its file and that of its mask within the export, and the caption as it is written."""

    item: Item
    picture: str
    mask: str | None
    caption: str


@dataclass(frozen=True)
class Group:
    """The pictures of one directory.

    Attributes:
        directory: its name.
        masks: ``none``, ``alpha``, ``auto`` for masks beside the pictures, or the name of the directory of masks.
        prefix: what puts the trigger in front of the captions, where the layout knows none.
        default: what pictures without a caption are trained on.
    """

    directory: str
    repeats: int
    kind: str
    weight: float
    masks: str
    prefix: str
    default: str
    places: tuple[Place, ...]


@dataclass(frozen=True)
class _Key:
    row: int
    folder: str
    repeats: int
    is_alpha: bool
    is_masked: bool
    prefix: str
    default: str


def grouped(items: Iterable[Item], dataset: DatasetConfig, traits: Traits, reserved: Iterable[str]) -> list[Group]:
    """The groups of a data set in the order of its pictures.

    Args:
        items: pictures with readable captions.
        reserved: names that no directory may have.
    """
    members: dict[_Key, list[Item]] = {}
    for item in items:
        members.setdefault(_key(item, dataset, traits), []).append(item)
    taken = {name.casefold() for name in reserved}
    return [_group(key, each, _directory(key, taken), dataset, traits) for key, each in members.items()]


def _key(item: Item, dataset: DatasetConfig, traits: Traits) -> _Key:
    row = dataset.folders.index(item.folder)
    parents = PurePosixPath(item.name).parts[:-1]
    if len(dataset.folders) == 1:
        parents = (folder_path(item.folder.path).resolve().name, *parents)
    prefix, default = _prompts(item, dataset, traits) if traits.prompts else ("", "")
    return _Key(
        row=row,
        folder="-".join(parents),
        repeats=item.repeats,
        is_alpha=traits.alpha and item.mask == item.path,
        is_masked=item.mask is not None and not traits.some_masks,
        prefix=prefix,
        default=default,
    )


def _prompts(item: Item, dataset: DatasetConfig, traits: Traits) -> tuple[str, str]:
    """(prefix, default caption) that make another trainer see what is trained on here."""
    if not is_subject(item):
        return "", "" if item.caption or traits.class_word else tidy(dataset.class_word or "")
    if traits.trigger or dataset.trigger is None:
        return "", ""
    if item.caption:
        return ("" if has_trigger(item.caption, dataset.trigger) else f"{tidy(dataset.trigger)},"), ""
    return "", tidy(dataset.trigger) if dataset.missing_captions == "trigger" else ""


def _directory(key: _Key, taken: set[str]) -> str:
    """A free name after the folder that the pictures come from."""
    name = candidate = safe_name(key.folder)
    number = 2
    while {candidate.casefold(), f"{candidate}{MASKS}".casefold()} & taken:
        candidate, number = f"{name}-{number}", number + 1
    taken |= {candidate.casefold(), f"{candidate}{MASKS}".casefold()}
    return candidate


def _group(key: _Key, items: list[Item], directory: str, dataset: DatasetConfig, traits: Traits) -> Group:
    apart = any(item.mask is not None for item in items) and not key.is_alpha
    masks = ("auto" if traits.masks_beside else f"{directory}{MASKS}") if apart else "alpha" if key.is_alpha else "none"
    taken: set[str] = set()
    return Group(
        directory=directory,
        repeats=key.repeats,
        kind=items[0].folder.kind,
        weight=items[0].folder.weight,
        masks=masks,
        prefix=key.prefix,
        default=key.default,
        places=tuple(_place(item, directory, masks, taken, dataset, traits) for item in items),
    )


def _place(item: Item, directory: str, masks: str, taken: set[str], dataset: DatasetConfig, traits: Traits) -> Place:
    stem = _free_stem(item.path.stem, _LONGEST - (len(BESIDE) if masks == "auto" else 0), taken)
    ending = item.path.suffix
    if ending not in (ending.lower(), ending.upper()):
        # Nobody looks for a "Jpg".
        ending = ending.lower()
    mask = None
    if item.mask is not None and masks != "alpha":
        # In lower case: some look for masks by their names.
        own = item.mask.suffix.lower() if item.mask != item.path else ".png"
        mask_ending = ending if traits.whole_mask_names else own if own in traits.mask_endings else ".png"
        mask = f"{directory}/{stem}{BESIDE}{mask_ending}" if masks == "auto" else f"{masks}/{stem}{mask_ending}"
    return Place(item, f"{directory}/{stem}{ending}", mask, _written_out(item, dataset, traits))


def _written_out(item: Item, dataset: DatasetConfig, traits: Traits) -> str:
    """The caption, with what the layout cannot say elsewhere: the word that its placeholder stands for, and prompts."""
    caption, word = item.caption or "", dataset.trigger if is_subject(item) else dataset.class_word or ""
    is_known = traits.trigger if is_subject(item) else traits.class_word
    if not (is_known or word is None):
        caption = tidy(caption.replace(PLACEHOLDER, word))
    if traits.prompts:
        return caption
    prefix, default = _prompts(item, dataset, traits)
    return f"{prefix} {caption}".strip() if caption else default


def _free_stem(stem: str, room: int, taken: set[str]) -> str:
    """The stem of a picture, cut to ``room`` bytes, with a number where it is taken.

    A caption and a mask belong to all pictures of one stem, in either form of an accented letter; and some systems know
    no case.
    """
    candidate, number = _cut(stem, room), 2
    while (folded := unicodedata.normalize("NFC", candidate).casefold()) in taken:
        mark = f"-{number}"
        candidate, number = f"{_cut(stem, room - len(mark))}{mark}", number + 1
    taken.add(folded)
    return candidate


def _cut(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")


def source_of(group: Group) -> Path:
    """The folder that the pictures of a group come from."""
    return group.places[0].item.path.parent
