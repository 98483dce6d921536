"""The pictures that are trained on: all that were read and have a caption, or one error for all that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from fluxtune.config.dataset import DatasetConfig
from fluxtune.dataset.caption_checks import check_captions
from fluxtune.dataset.captions import PLACEHOLDER, tidy, with_trigger
from fluxtune.dataset.findings import as_warnings, name_of
from fluxtune.dataset.folder import Item, is_subject
from fluxtune.dataset.images import Size
from fluxtune.dataset.likeness import check_likeness
from fluxtune.dataset.picture_checks import check_pictures
from fluxtune.dataset.survey import Look, Survey, survey
from fluxtune.errors import DataError, some_names
from fluxtune.events import Finding, Sink, Warning

CaptionBare: TypeAlias = Callable[[Sequence[tuple[Item, Look]]], Mapping[str, str]]
"""Pictures without a caption, as they were seen -> captions by the pictures' names: a file may be two pictures, one of
the subject and one of its class."""

CAPTIONER = "captioning.captioner"
"""The setting that captions of pictures without any come from."""

SHOWN = 20
"""Problems listed in one error; the rest is counted."""

OF_FOLDERS = ("no-folder", "unreadable-folder", "no-pictures")
"""What is wrong with a folder as a whole cannot be accepted."""


@dataclass(frozen=True)
class Picture:
    """A picture that was decoded without error, and its final caption.

    ``name`` is its path relative to its folder, with forward slashes; ``size`` is (width, height) upright;
    ``digest`` is the SHA-256 of the file's bytes; ``repeats`` is how often it is seen in an epoch; ``mask`` is the file
    with its mask, which may be the picture itself (its transparency), and ``mask_digest`` the SHA-256 of its bytes;
    ``weight`` is how much its loss counts; ``is_subject`` is False for regularization pictures, which never get the
    trigger. ``caption_source`` is where the caption came from: a file, a line of one, a folder's name, or the setting
    that gave it.
    """

    path: Path
    name: str
    caption: str
    size: Size
    digest: str
    repeats: int
    mask: Path | None = None
    mask_digest: str | None = None
    weight: float = 1.0
    is_subject: bool = True
    caption_source: str = ""


def read_folders(
    config: DatasetConfig, on_event: Sink, accept_errors: bool = False, caption_bare: CaptionBare | None = None
) -> list[Picture]:
    """Read and check all folders of the configuration, and say what was found: both steps below at once.

    Raises:
        DataError: as ``check_folders`` and ``pictures_of``.
    """
    usable = check_folders(config, on_event, accept_errors, caption_bare is not None)
    return pictures_of(usable, config, on_event, caption_bare)


def check_folders(
    config: DatasetConfig, on_event: Sink, accept_errors: bool = False, has_captioner: bool = False
) -> list[tuple[Item, Look]]:
    """Look at everything in the folders of the configuration, refuse what is wrong, and say what else was found.

    Args:
        accept_errors: go on in spite of what is wrong with single pictures, without those that cannot be read.
        has_captioner: captions that are missing can be had where ``missing_captions`` asks for that.

    Returns:
        The pictures that can be used, as they were seen.

    Raises:
        DataError: one error for all problems of all folders; see ``SHOWN``. With ``accept_errors`` only where nothing
        is left, a folder as a whole is wrong, or captions are missing.
    """
    if not config.folders:
        raise DataError("no folder of pictures is given", hint="fluxtune train FOLDER", check="no-pictures")
    surveyed = survey(config, on_event)
    findings = [*surveyed.findings, *check_pictures(surveyed), *check_likeness(list(surveyed.looked_at()))]
    errors = [each for each in findings if each.severity == "error"]
    usable = _usable(surveyed)
    captioned = has_captioner and config.missing_captions == "caption"
    missing = [] if captioned else missing_captions([item for item, _ in usable], surveyed.seen, config)
    refused = errors if not (accept_errors and usable) else [each for each in errors if each.check in OF_FOLDERS]
    if refused or missing:
        raise all_in_one(refused, missing, can_go_on=bool(usable))
    if errors:
        message = f"{_of(usable, surveyed.seen)} are trained on, in spite of what is wrong with"
        on_event(Warning(f"{message} {some_names(name_of(each) for each in errors)}"))
    for warning in as_warnings(findings):
        on_event(warning)
    return usable


def pictures_of(
    usable: Sequence[tuple[Item, Look]],
    config: DatasetConfig,
    on_event: Sink,
    caption_bare: CaptionBare | None = None,
) -> list[Picture]:
    """The pictures with their final captions; what was found in these is said.

    Args:
        caption_bare: captions pictures that have none, where ``missing_captions`` asks for that.

    Raises:
        DataError: pictures without a caption are left; or what ``caption_bare`` raises.
    """
    if caption_bare is not None and config.missing_captions == "caption":
        usable = _with_captions(usable, caption_bare)
    items = [item for item, _ in usable]
    if missing := missing_captions(items, items, config):
        raise all_in_one([], missing, can_go_on=False)
    if bare := [item.name for item in items if item.caption == "" and is_subject(item)]:
        on_event(Warning(f"{_of(bare, items)} without a caption, trained on the trigger alone: {some_names(bare)}"))
    # The tokens are counted by the base model's own tokenizers, once it is there; see training/tokens.py.
    findings = check_captions(items, config.trigger, limits=())
    for warning in as_warnings([each for each in findings if each.check not in ("missing-caption", "empty-caption")]):
        on_event(warning)
    return [
        replace(picture_of(item, look, final_caption(item, config)), caption_source=_source(item))
        for item, look in usable
    ]


def _with_captions(usable: Sequence[tuple[Item, Look]], caption_bare: CaptionBare) -> list[tuple[Item, Look]]:
    """The pictures, with a caption where they had none."""
    bare = [(item, look) for item, look in usable if item.caption == ""]
    said = caption_bare(bare) if bare else {}
    return [
        (replace(item, caption=said[item.name], caption_place=CAPTIONER) if item.name in said else item, look)
        for item, look in usable
    ]


def picture_of(item: Item, look: Look, caption: str) -> Picture:
    """The picture that an item turned out to be."""
    return Picture(
        path=item.path,
        name=item.name,
        caption=caption,
        size=look.size,
        digest=look.digest,
        repeats=item.repeats,
        mask=item.mask,
        mask_digest=look.mask_digest,
        weight=item.folder.weight,
        is_subject=is_subject(item),
    )


def _usable(surveyed: Survey) -> list[tuple[Item, Look]]:
    return [
        (seen.item, seen.look)
        for seen in surveyed.seen
        if seen.look is not None and seen.mask_error is None and seen.item.caption is not None
    ]


def final_caption(item: Item, config: DatasetConfig) -> str:
    """What a picture is trained with: its caption with the trigger, or that of its class."""
    caption = item.caption or ""
    if not is_subject(item):
        return tidy(caption.replace(PLACEHOLDER, config.class_word or "")) or tidy(config.class_word or "")
    return with_trigger(caption, config.trigger) if config.trigger is not None else caption


def _source(item: Item) -> str:
    if item.caption:
        return str(item.caption_place)
    return "dataset.trigger" if is_subject(item) else "dataset.class_word"


def missing_captions(items: list[Item], of_all: Sized, config: DatasetConfig) -> list[DataError]:
    """One problem for all pictures without a caption, unless the configuration says what to train them on."""
    missing = [item for item in items if item.caption == "" and (is_subject(item) or not config.class_word)]
    if not missing or (config.missing_captions == "trigger" and config.trigger and all(map(is_subject, missing))):
        return []
    message = f"{_of(missing, of_all)} without a caption: {some_names(item.name for item in missing)}"
    if config.missing_captions == "trigger":
        return [DataError(f"{message}; and there is no trigger to train them on", hint="set dataset.trigger")]
    hint = "`fluxtune caption FOLDER` writes them"
    if config.missing_captions == "error":
        hint += '; or set dataset.missing_captions = "caption" or "trigger"'
    return [DataError(message, hint=hint)]


def all_in_one(errors: list[Finding], missing: list[DataError], can_go_on: bool) -> DataError:
    """One error for all that is wrong; with ``can_go_on`` it says how to do without what is."""
    problems = [DataError(each.message, where=each.where, hint=each.hint, check=each.check) for each in errors]
    problems += missing
    hints = list(dict.fromkeys(problem.hint for problem in problems if problem.hint))
    if can_go_on and errors and not any(each.check in OF_FOLDERS for each in errors):
        hints.append("--accept data goes on with what can be read")
    hint = "; ".join(hints) or None
    if len(problems) == 1:
        return DataError(problems[0].message, where=problems[0].where, hint=hint, check=problems[0].check)
    lines = [f"{problem.where}: {problem.message}" if problem.where else problem.message for problem in problems]
    more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    listed = "".join(f"\n  {line}" for line in lines[:SHOWN] + more)
    return DataError(f"{len(problems)} problems in the data set:{listed}", hint=hint)


def _of(some: Sized, of_all: Sized) -> str:
    return f"{len(some)} of {len(of_all)} picture{'' if len(of_all) == 1 else 's'}"
