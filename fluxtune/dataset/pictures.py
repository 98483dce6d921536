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

CaptionBare: TypeAlias = Callable[[Sequence[tuple[Item, Look]]], Mapping[Path, str]]
"""Pictures without a caption, as they were seen -> captions by picture file."""

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
    trigger.
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


def read_folders(
    config: DatasetConfig, on_event: Sink, accept_errors: bool = False, caption_bare: CaptionBare | None = None
) -> list[Picture]:
    """Read and check all folders of the configuration, and say what was found.

    Args:
        accept_errors: go on in spite of what is wrong with single pictures, without those that cannot be read.
        caption_bare: captions pictures that have none, where ``missing_captions`` asks for that.

    Raises:
        DataError: one error for all problems of all folders; see ``SHOWN``. With ``accept_errors`` only where nothing
        is left, a folder as a whole is wrong, or captions are missing.
    """
    if not config.folders:
        raise DataError("no folder of pictures is given", hint="fluxtune train FOLDER", check="no-pictures")
    surveyed = survey(config, on_event)
    if config.missing_captions == "caption" and caption_bare is not None:
        surveyed = _with_captions(surveyed, caption_bare)
    items = [seen.item for seen in surveyed.seen]
    findings = [
        *surveyed.findings,
        *check_pictures(surveyed),
        # The tokens are counted by the base model's own tokenizers, once it is there; see training/tokens.py.
        *check_captions(items, config.trigger, limits=()),
        *check_likeness(list(surveyed.looked_at())),
    ]
    errors = [each for each in findings if each.severity == "error"]
    pictures = _usable(surveyed, config)
    missing = missing_captions(items, config)
    refused = errors if not (accept_errors and pictures) else [each for each in errors if each.check in OF_FOLDERS]
    if refused or missing:
        raise all_in_one(refused, missing, can_go_on=bool(pictures))
    if errors:
        message = f"{_of(pictures, items)} are trained on, in spite of what is wrong with"
        on_event(Warning(f"{message} {some_names(name_of(each) for each in errors)}"))
    if bare := [item.name for item in items if item.caption == "" and is_subject(item)]:
        on_event(Warning(f"{_of(bare, items)} without a caption, trained on the trigger alone: {some_names(bare)}"))
    for warning in as_warnings([each for each in findings if each.check not in ("missing-caption", "empty-caption")]):
        on_event(warning)
    return pictures


def _with_captions(surveyed: Survey, caption_bare: CaptionBare) -> Survey:
    """The survey with a caption for each picture that can be read and has none."""
    bare = [(seen.item, seen.look) for seen in surveyed.seen if seen.item.caption == "" and seen.look is not None]
    said = caption_bare(bare) if bare else {}
    return replace(
        surveyed,
        seen=tuple(
            replace(seen, item=replace(seen.item, caption=said[seen.item.path], caption_place="captioning.captioner"))
            if seen.item.path in said
            else seen
            for seen in surveyed.seen
        ),
    )


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


def _usable(surveyed: Survey, config: DatasetConfig) -> list[Picture]:
    return [
        picture_of(seen.item, seen.look, _final(seen.item, config))
        for seen in surveyed.seen
        if seen.look is not None and seen.mask_error is None and seen.item.caption is not None
    ]


def _final(item: Item, config: DatasetConfig) -> str:
    caption = item.caption or ""
    if not is_subject(item):
        return tidy(caption.replace(PLACEHOLDER, config.class_word or "")) or tidy(config.class_word or "")
    return with_trigger(caption, config.trigger) if config.trigger is not None else caption


def missing_captions(items: list[Item], config: DatasetConfig) -> list[DataError]:
    """One problem for all pictures without a caption, unless the configuration says what to train them on."""
    missing = [item for item in items if item.caption == "" and (is_subject(item) or not config.class_word)]
    if not missing or (config.missing_captions == "trigger" and config.trigger and all(map(is_subject, missing))):
        return []
    message = f"{_of(missing, items)} without a caption: {some_names(item.name for item in missing)}"
    if config.missing_captions == "trigger":
        return [DataError(f"{message}; and there is no trigger to train them on", hint="set dataset.trigger")]
    hint = '`fluxtune caption FOLDER` writes them; or set dataset.missing_captions = "caption" or "trigger"'
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
