"""Which pictures are to be captioned, and where their captions go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from fluxtune.config.dataset import FolderConfig
from fluxtune.config.schema import Config
from fluxtune.dataset.captions import stem_of, tidy
from fluxtune.dataset.folder import OTHER_PICTURES, PICTURES, Item, list_folders
from fluxtune.errors import DataError, UsageError
from fluxtune.events import Sink, Warning

_FATAL = ("no-folder", "no-pictures", "unreadable-folder")


def all_pictures(config: Config, on_event: Sink) -> list[Item]:
    """All pictures of all folders; captions that cannot be read are reported.

    Raises:
        DataError: a folder is not there, cannot be read, or holds no pictures.
        UsageError: a folder's captions are said to be in files that end as pictures do.
    """
    for folder in config.dataset.folders:
        _check_captions(folder, on_event)
    listing = list_folders(config.dataset.folders)
    for finding in listing.findings:
        if finding.check in _FATAL:
            raise DataError(finding.message, where=finding.where, hint=finding.hint, check=finding.check)
        if finding.severity == "error":
            on_event(finding)
    return list(listing.items)


def _check_captions(folder: FolderConfig, on_event: Sink) -> None:
    if folder.captions.lower() in (*PICTURES, *OTHER_PICTURES):
        raise UsageError(
            f"captions = {folder.captions!r} would write captions over pictures",
            where=folder.path,
            hint='use the ending of caption files, such as ".txt"',
        )
    if folder.captions in ("names", "none"):
        on_event(
            Warning(
                f"captions = {folder.captions!r}: a training with these settings does not read the captions that are "
                "written here",
                where=folder.path,
                hint='use captions = "auto"',
            )
        )


def caption_file(item: Item) -> Path:
    """Where the caption of a picture stands, or will."""
    ending = item.folder.captions if item.folder.captions.startswith(".") else ".txt"
    return item.caption_file or item.path.with_suffix(ending)


def to_caption(items: Sequence[Item], existing: str, on_event: Sink) -> Iterator[Item]:
    """The pictures whose captions are to be written, each caption file once.

    Args:
        existing: the setting `captioning.existing`.
    """
    real_folder = cache(Path.resolve)
    taken: dict[str, Item] = {}
    for item in items:
        if _has_caption(item, existing, on_event):
            continue
        path = real_folder(item.path.parent) / item.path.name
        first = taken.setdefault(stem_of(path), item)
        if first is item:
            yield item
        elif first.path.name != item.path.name:  # else it is the same picture, by another name of its folder
            on_event(
                Warning(
                    f"{first.path.name} would have the same caption file: only that one is captioned",
                    where=str(item.path),
                    hint="give one of them another name",
                )
            )


def _has_caption(item: Item, existing: str, on_event: Sink) -> bool:
    """Whether the caption of a picture is to stay."""
    in_a_table = item.caption_file is None and item.caption_place is not None and not item.caption_place.endswith("/")
    if existing == "overwrite" and in_a_table:
        on_event(
            Warning(
                "the caption stands in no file of its own, and is left as it is",
                where=item.caption_place,
                hint="fluxtune export dataset FOLDER --format folder makes a copy with a caption file for each picture",
            )
        )
        return True
    if existing == "overwrite":
        return False
    if existing == "skip" and item.caption_file is not None:
        return True
    # None is a caption that cannot be read: somebody's work all the same.
    has_one = item.caption is None or (item.caption != "" and (item.caption_file is not None or in_a_table))
    return has_one or _has_words(caption_file(item))


def _has_words(file: Path) -> bool:
    """Whether a file is somebody's work although the folder's settings do not take it for a caption, or it was none
    when the folder was listed."""
    try:
        return bool(tidy(file.read_bytes().decode("utf-8-sig", "replace")))
    except OSError:
        return False
