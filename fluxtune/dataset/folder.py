"""Folders of pictures with captions beside them -> the list of pictures to train on, all of it checked.

Every picture is decoded and every caption read before anything is trained, and all problems are shown at
once.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fluxtune.config.dataset import DatasetConfig, FolderConfig
from fluxtune.dataset.captions import captions_by_stem, has_trigger, read_caption, stem_of, tidy, with_trigger
from fluxtune.dataset.images import Size, open_image
from fluxtune.errors import DataError, some_names
from fluxtune.events import Progress, Sink, Warning
from fluxtune.files import sha256_of

_RUN_MARKS = {"run.json", "config.toml"}
"""What every run folder holds (``runs.py``)."""

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
OTHER_PICTURES = (".gif", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".dng", ".cr2", ".nef", ".arw")
"""Pictures that cannot be read: said, never skipped in silence."""

SHOWN = 20
"""Problems listed in one error; the rest is counted."""

_DECODERS = min(4, os.cpu_count() or 1)
"""Pictures decoded at once: each may take up to 1 GiB (``images.MAX_PIXELS``)."""


@dataclass(frozen=True)
class Picture:
    """A picture that was decoded without error, and its final caption.

    ``name`` is its path relative to its folder, with forward slashes; ``size`` is (width, height) upright;
    ``digest`` is the SHA-256 of the file's bytes; ``repeats`` is how often it is seen in an epoch.
    """

    path: Path
    name: str
    caption: str
    size: Size
    digest: str
    repeats: int


@dataclass(frozen=True)
class _Found:
    """A picture file before it is read; ``caption`` is as written, empty where there is none, None if bad."""

    path: Path
    name: str
    caption: str | None
    repeats: int


def read_folders(config: DatasetConfig, on_event: Sink) -> list[Picture]:
    """Read all folders of the configuration: captions, then every picture completely, several at a time.

    The order is natural (``2.png`` before ``10.png``) and depends on the names alone. Nothing is written.

    Raises:
        DataError: one error for all problems of all folders; see ``SHOWN``.
    """
    problems: list[DataError] = []
    if not config.folders:
        problems.append(DataError("no folder of pictures is given", hint="fluxtune train FOLDER"))
    found = [picture for folder in config.folders for picture in _find(folder, problems, on_event)]
    problems += _missing_captions(found, config)
    read = _read_all(found, config.background, problems, on_event)
    if problems:
        raise _all_in_one(problems)
    pictures = [
        Picture(item.path, item.name, _final(item.caption or "", config.trigger), size, digest, item.repeats)
        for item, (size, digest) in zip(found, read, strict=True)
    ]
    _warn(pictures, found, config.trigger, on_event)
    return pictures


def folder_path(path: str) -> Path:
    """The folder that a configuration means: ``nano:demo`` is the embedded demo, ``~`` the home folder."""
    if path == "nano:demo":
        from fluxtune.nano import demo_folder

        return demo_folder()
    return Path(os.path.expanduser(path))


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sorts names as people do: runs of digits by their value, letters without regard to case."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def _find(folder: FolderConfig, problems: list[DataError], on_event: Sink) -> list[_Found]:
    """The pictures of one folder in order, with the captions beside them; problems are added to the list."""
    root = folder_path(folder.path)
    if not root.is_dir():
        seen = "this is a file, not a folder" if root.exists() else "there is no such folder"
        problems.append(DataError(seen, where=str(root), hint="check the path"))
        return []
    files = _files_below(root, problems)
    captions = captions_by_stem(files)
    pictures = [file for file in files if file.suffix.lower() in PICTURES]
    if unread := [file.name for file in files if file.suffix.lower() in OTHER_PICTURES]:
        message = f"{_count(unread, 'file')} left out, of a kind that is not read: {some_names(unread)}"
        on_event(Warning(message, where=str(root), hint="save them as PNG or JPEG"))
    if not pictures:
        hint = f"put pictures there ({' '.join(PICTURES)})"
        problems.append(DataError("there are no pictures in this folder", where=str(root), hint=hint))
    shared = Counter(stem_of(picture) for picture in pictures if stem_of(picture) in captions)
    if alike := [picture.name for picture in pictures if shared[stem_of(picture)] > 1]:
        message = f"{_count(alike, 'picture')} with the caption of another, for their names differ in the ending alone"
        on_event(Warning(f"{message}: {some_names(alike)}", where=str(root), hint="rename those that differ"))
    return [
        _Found(
            picture,
            picture.relative_to(root).as_posix(),
            _caption(picture, captions.get(stem_of(picture), []), problems),
            folder.repeats,
        )
        for picture in pictures
    ]


def _files_below(root: Path, problems: list[DataError]) -> list[Path]:
    """All files that are not hidden, nested folders included (links are followed once), in natural order.

    Folders of runs are passed over: their previews and checkpoints are no data.
    """

    def unreadable(error: OSError) -> None:
        reason = (error.strerror or str(error)).lower()
        problems.append(DataError(f"the folder cannot be read: {reason}", where=str(error.filename)))

    files: list[Path] = []
    visited = {os.path.realpath(root)}
    for parent, folders, names in os.walk(root, onerror=unreadable, followlinks=True):
        real = {name: os.path.realpath(Path(parent, name)) for name in folders if not name.startswith(".")}
        folders[:] = sorted(name for name, target in real.items() if target not in visited)
        visited.update(real.values())
        if set(names) >= _RUN_MARKS:
            folders.clear()
            continue
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    named = [file for file in files if _is_unicode(file, problems)]
    return sorted(named, key=lambda file: [natural_key(part) for part in file.relative_to(root).parts])


def _is_unicode(file: Path, problems: list[DataError]) -> bool:
    """Names that are no text cannot be logged, hashed or written down."""
    if (readable := os.fsencode(file).decode("utf-8", "replace")) == str(file):
        return True
    problems.append(DataError("the file's name is not valid UTF-8", where=readable, hint="rename the file"))
    return False


def _caption(picture: Path, files: list[Path], problems: list[DataError]) -> str | None:
    if len(files) > 1:
        message = f"the picture has {len(files)} captions: {some_names(file.name for file in files)}"
        problems.append(DataError(message, where=str(picture), hint="keep one caption for each picture"))
        return None
    try:
        return read_caption(files[0]) if files else ""
    except DataError as error:
        problems.append(error)
        return None


def _missing_captions(found: list[_Found], config: DatasetConfig) -> list[DataError]:
    """One problem for all pictures without a caption, unless the configuration says what to train them on."""
    missing = [picture for picture in found if picture.caption == ""]
    if not missing or (config.missing_captions == "trigger" and config.trigger):
        return []
    names = some_names(picture.name for picture in missing)
    message = f"{len(missing)} of {_count(found, 'picture')} without a caption: {names}"
    if config.missing_captions == "trigger":
        return [DataError(f"{message}; and there is no trigger to train them on", hint="set dataset.trigger")]
    hint = 'write a .txt beside each, or set dataset.missing_captions = "trigger"'
    return [DataError(message, hint=hint)]


def _read_all(
    found: list[_Found], background: str, problems: list[DataError], on_event: Sink
) -> list[tuple[Size, str]]:
    """(size, digest) of each picture, decoded in a few threads; those that cannot be read become problems."""

    def read(picture: _Found) -> tuple[Size, str] | DataError:
        try:
            return open_image(picture.path, background).size, sha256_of(picture.path)
        except DataError as error:
            return error

    done: list[tuple[Size, str]] = []
    with ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode") as pool:
        for number, outcome in enumerate(pool.map(read, found), start=1):
            if isinstance(outcome, DataError):
                problems.append(outcome)
            else:
                done.append(outcome)
            on_event(Progress("read pictures", number, len(found), unit="pictures"))
    return done


def _all_in_one(problems: list[DataError]) -> DataError:
    if len(problems) == 1:
        return problems[0]
    lines = [f"{problem.where}: {problem.message}" if problem.where else problem.message for problem in problems]
    more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    hints = dict.fromkeys(problem.hint for problem in problems if problem.hint)
    listed = "".join(f"\n  {line}" for line in lines[:SHOWN] + more)
    return DataError(f"{len(problems)} problems in the data set:{listed}", hint="; ".join(hints) or None)


def _warn(pictures: list[Picture], found: list[_Found], trigger: str | None, on_event: Sink) -> None:
    """Say what was done to captions, and which pictures are the same file twice."""
    if trigger is not None:
        bare = [item.name for item in found if item.caption == ""]
        if bare:
            message = f"{len(bare)} of {_count(found, 'picture')} without a caption, trained on the trigger alone"
            on_event(Warning(f"{message}: {some_names(bare)}"))
        lacking = [item.name for item in found if item.caption and not has_trigger(item.caption, trigger)]
        if lacking:
            message = f"trigger word {tidy(trigger)!r} put in front of {len(lacking)} of {_count(found, 'caption')}"
            on_event(Warning(f"{message}, which lacked it: {some_names(lacking)}"))
    same: dict[str, list[str]] = defaultdict(list)
    for picture in pictures:
        same[picture.digest].append(picture.name)
    if twins := [" = ".join(names) for names in same.values() if len(names) > 1]:
        message = f"{_count(twins, 'picture')} more than once in the data set: {some_names(twins)}"
        on_event(Warning(message, hint="take the copies out, or use repeats, which says what is meant"))


def _final(caption: str, trigger: str | None) -> str:
    return with_trigger(caption, trigger) if trigger is not None else caption


def _count(items: Sized, noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"
