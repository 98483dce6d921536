"""What lies in a folder: picture files in order, each with the caption beside it, and what is wrong before any picture
is decoded."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from fluxtune.config.dataset import FolderConfig
from fluxtune.dataset.captions import stem_of
from fluxtune.dataset.findings import found, found_special
from fluxtune.dataset.masks import Masks
from fluxtune.dataset.sources import Captions
from fluxtune.errors import some_names
from fluxtune.events import Finding
from fluxtune.files import is_special

_RUN_MARKS = {"run.json", "config.toml"}
"""What every run folder holds (``runs.py``)."""

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
OTHER_PICTURES = (".gif", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".dng", ".cr2", ".nef", ".arw")
"""Pictures that cannot be read: said, never skipped in silence."""


@dataclass(frozen=True)
class Item:
    """A picture file that was not opened yet.

    Attributes:
        path: the file.
        name: its path within its folder, with forward slashes; with several folders, the folder's name in front.
        caption: as written; empty where there is none, None where it is no text.
        caption_file: the text file with the caption, if it has one of its own.
        caption_place: where the caption stands, if anywhere: a file, a line of one, a folder's name.
        repeats: how often it is seen in an epoch.
        folder: the settings of its folder.
        mask: the file with its mask, which is the picture itself where its transparency counts.
    """

    path: Path
    name: str
    caption: str | None
    caption_file: Path | None
    caption_place: str | None
    repeats: int
    folder: FolderConfig
    mask: Path | None


@dataclass(frozen=True)
class Listing:
    """All picture files of a data set, and what was found on the way."""

    items: tuple[Item, ...]
    findings: tuple[Finding, ...]


def is_subject(item: Item) -> bool:
    """Whether a picture is of what is to be learned, and not one that keeps the rest."""
    return item.folder.kind == "train"


def list_folders(folders: list[FolderConfig]) -> Listing:
    """The picture files of all folders and their captions. Nothing is written, no picture opened.

    The order is natural (``2.png`` before ``10.png``) and depends on the names alone.
    """
    findings: list[Finding] = []
    items = [
        item
        for folder, prefix in zip(folders, _prefixes(folders), strict=True)
        for item in _list(folder, prefix, findings)
    ]
    return Listing(tuple(items), tuple(findings))


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


def _prefixes(folders: list[FolderConfig]) -> list[str]:
    """What tells the pictures of several folders apart: `photos/`, `more/`, `photos-2/`."""
    if len(folders) == 1:
        return [""]
    taken: list[str] = []
    for folder in folders:
        name = candidate = folder_path(folder.path).resolve().name or "root"
        number = 2
        while f"{candidate}/" in taken:
            candidate, number = f"{name}-{number}", number + 1
        taken.append(f"{candidate}/")
    return taken


def _list(folder: FolderConfig, prefix: str, findings: list[Finding]) -> list[Item]:
    root = folder_path(folder.path)
    if not os.path.isdir(root):
        seen = "this is a file, not a folder" if os.path.exists(root) else "there is no such folder"
        findings.append(found("no-folder", seen, where=str(root), hint="check the path"))
        return []
    files = _files_below(root, folder.nested, findings)
    masks = Masks(folder, files, findings)
    # A captioner that went through the folder has captioned the masks, too.
    unmasked = [file for file in files if not masks.is_mask(file)]
    pictures = [file for file in unmasked if file.suffix.lower() in PICTURES]
    for file in files:
        if file.suffix.lower() in OTHER_PICTURES:
            message = f"{file.suffix.lower()} files are not read: the picture is left out"
            findings.append(found("unread-kind", message, where=str(file), picture=prefix + _name(file, root)))
    if not pictures:
        hint = f"put pictures there ({' '.join(PICTURES)})"
        findings.append(found("no-pictures", "there are no pictures in this folder", where=str(root), hint=hint))
    captions = Captions(folder, root, unmasked, pictures, findings)
    findings += _of_shared_and_stray_captions(root, prefix, pictures, captions.files)
    items = []
    for picture in pictures:
        name = prefix + _name(picture, root)
        caption = captions.of(picture, name)
        repeats, mask = captions.repeats(picture), masks.of(picture, root)
        items.append(Item(picture, name, caption.text, caption.file, caption.place, repeats, folder, mask))
    findings += masks.without_a_picture()
    return items


def _files_below(root: Path, nested: bool, findings: list[Finding]) -> list[Path]:
    """All files that are not hidden, in natural order; those of ``nested`` folders, too (links are followed once).

    Folders of runs are passed over: their previews and checkpoints are no data.
    """

    def unreadable(error: OSError) -> None:
        reason = (error.strerror or str(error)).lower()
        findings.append(
            found("unreadable-folder", f"the folder cannot be read: {reason}", where=_readable(str(error.filename)))
        )

    files: list[Path] = []
    visited = {os.path.realpath(root)}
    for parent, folders, names in os.walk(root, onerror=unreadable, followlinks=True):
        real = {name: os.path.realpath(Path(parent, name)) for name in folders if not name.startswith(".")}
        folders[:] = sorted(name for name, target in real.items() if target not in visited)
        visited.update(real.values())
        if folders and not nested:
            message = f"the folders within it are not read: {some_names(folders)}"
            findings.append(found("unread-folder", message, where=str(root)))
            folders.clear()
        if set(names) >= _RUN_MARKS:
            folders.clear()
            continue
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    named = [file for file in files if _is_unicode(file, findings) and _is_file(file, findings)]
    return sorted(named, key=lambda file: [natural_key(part) for part in file.relative_to(root).parts])


def _is_unicode(file: Path, findings: list[Finding]) -> bool:
    """Names that are no text cannot be logged, hashed or written down."""
    if (readable := _readable(str(file))) == str(file):
        return True
    findings.append(found("bad-name", "the file's name is not valid UTF-8", where=readable))
    return False


def _is_file(file: Path, findings: list[Finding]) -> bool:
    """Whether a name is one to read. What it is a link to counts; one to nowhere is told where it is read."""
    if not is_special(file):
        return True
    findings.append(found_special(file))
    return False


def _readable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "replace")


def _name(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix()


def _of_shared_and_stray_captions(
    root: Path, prefix: str, pictures: list[Path], captions: dict[str, list[Path]]
) -> list[Finding]:
    findings = []
    by_stem: dict[str, list[Path]] = {}
    for picture in pictures:
        by_stem.setdefault(stem_of(picture), []).append(picture)
    for stem, files in captions.items():
        owners = by_stem.get(stem, [])
        for second in owners[1:]:
            message = f"{owners[0].name} has the same caption, {files[0].name}"
            findings.append(found("shared-caption", message, where=str(second), picture=prefix + _name(second, root)))
        if not owners:
            message = "no picture has this name"
            findings += [found("stray-caption", message, where=str(file)) for file in files if _is_caption(file)]
    return findings


def _is_caption(file: Path) -> bool:
    """Texts about the whole folder are no captions that lost their picture."""
    return file.stem.casefold() not in {"readme", "license", "licence", "notes", "requirements", "robots"}
