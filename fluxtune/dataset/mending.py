"""A repaired copy of a data set: upright sRGB pictures, safe names, plain captions, copies set aside.

The original is only read. The copy is made under another name and moved into place whole.
"""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fluxtune.config.dataset import FolderConfig
from fluxtune.config.descriptions.reading import OWN_FILE, own_text, without_defaults
from fluxtune.dataset.captions import SUFFIXES, stem_of, tidy
from fluxtune.dataset.folder import Item, folder_path
from fluxtune.dataset.images import read_mask, read_with_alpha
from fluxtune.dataset.layouts import kohya_folder
from fluxtune.dataset.masks import BESIDE
from fluxtune.dataset.picture_checks import EXTENSIONS
from fluxtune.dataset.survey import Look, Seen
from fluxtune.dataset.validation import Report
from fluxtune.events import Progress, Sink
from fluxtune.files import (
    require_new_folder,
    require_space,
    require_writable,
    whole_folder,
    write_bytes,
    write_text,
    write_with,
)

SET_ASIDE = ".set-aside"
"""Folder in the copy for what does not belong to it any more; hidden, so that no trainer reads it."""

_LEFT_OUT = ("bad-name", "unread-kind", "stray-caption", "stray-mask")
"""Findings of files that are no part of the data set, and not of the copy."""
_LONGEST = 100
"""Bytes in UTF-8 of a safe name's stem."""
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}
"""Names that Windows keeps for devices."""


@dataclass(frozen=True)
class Mend:
    """What became of one file: ``source`` in the original, ``target`` in the copy (empty if it has none), what was
    ``done``."""

    source: str
    target: str
    done: tuple[str, ...]


def require_destination(destination: Path, folders: Iterable[str]) -> None:
    """Refuse a place for the repaired copy of these folders, before their pictures are read.

    Raises:
        UsageError: it is there already, or lies within the data set.
        StorageError: nothing can be written there.
    """
    require_new_folder(destination, "the repaired copy", map(folder_path, folders))
    require_writable(destination)


def mend(
    report: Report, destination: Path, on_event: Sink, shared: Mapping[str, Any] = MappingProxyType({})
) -> list[Mend]:
    """Write a repaired copy of the data set of a report.

    Pictures that need nothing are copied as they are; turned, printed, 16-bit and wide-gamut ones become PNGs in
    upright 8-bit sRGB, with their transparency; what cannot be read and what is there twice is set aside. Several
    folders stay apart in it, and what their rows say of repeats, weight and kind comes along in a ``dataset.toml``.

    Args:
        shared: settings of ``[dataset]`` that belong to the data set, and go there, too.

    Returns:
        What was done, one row for each file that did not stay as it was.

    Raises:
        UsageError: the destination is there already, or lies within the data set.
        StorageError: it cannot be written; nothing is left behind.
    """
    require_destination(destination, report.folders)
    size = sum(seen.item.path.stat().st_size for seen in report.survey.seen if seen.item.path.exists())
    require_space(destination, 2 * size, "the repaired copy")
    with whole_folder(destination) as half_made:
        rows = _rows(report)
        mends = list(_mend_all(report, half_made, {row: name for row, (name, _) in rows.items()}, on_event))
        if shared or any(len(settings) > 1 for _, settings in rows.values()):
            text = own_text(dict(shared), [settings for _, settings in rows.values()])
            write_text(half_made / OWN_FILE, text)
            mends.append(Mend("", OWN_FILE, ("written: settings of the data set and its folders",)))
        return mends


def _rows(report: Report) -> dict[FolderConfig, tuple[str, dict[str, Any]]]:
    """Row of the data set -> its folder in the copy, empty for the copy itself, and its row there."""
    rows: dict[FolderConfig, tuple[str, dict[str, Any]]] = {}
    taken: set[str] = set()
    for seen in report.survey.seen:
        row = seen.item.folder
        if row in rows:
            continue
        own = folder_path(row.path).resolve().name
        # A name that says something stays; otherwise the copy of a single folder is that folder.
        apart = len(report.folders) > 1 or (row.folder_names and kohya_folder(own) is not None)
        name = candidate = safe_name(own) if apart else ""
        number = 2
        while candidate.casefold() in taken:
            candidate, number = f"{name}-{number}", number + 1
        taken.add(candidate.casefold())
        kept = {
            "path": candidate or ".",
            "repeats": row.repeats,
            "kind": row.kind,
            "weight": row.weight,
            "masks": "alpha" if row.masks == "alpha" else "auto",
            "folder_names": row.folder_names,
        }
        rows[row] = candidate, without_defaults(kept)
    return rows


def safe_name(name: str) -> str:
    """A file's stem that every system takes: letters and digits of any script, spaces, dots, dashes, underscores."""
    composed = unicodedata.normalize("NFC", name)
    kept = "".join(letter if _is_safe(letter) else "-" for letter in composed)
    cut = kept.strip(" .-").encode()[:_LONGEST].decode(errors="ignore")
    short = cut.rstrip(" .-") or "picture"
    return f"{short}-" if short.casefold() in _RESERVED else short


def _is_safe(letter: str) -> bool:
    # Marks are parts of letters in many scripts.
    return letter in " ._-" or unicodedata.category(letter)[0] in "LNM"


def _mend_all(report: Report, root: Path, tops: Mapping[FolderConfig, str], on_event: Sink) -> Iterator[Mend]:
    first_of: dict[str, str] = {}
    taken: set[str] = set()
    aside: set[str] = set()
    total = len(report.survey.seen)
    for number, seen in enumerate(report.survey.seen, start=1):
        name = seen.item.name
        within = name.partition("/")[2] if len(report.folders) > 1 else name
        target = f"{tops[seen.item.folder]}/{within}".lstrip("/")
        if seen.look is None:
            why = seen.error.message if seen.error else "it cannot be read"
            yield _set_aside(seen, root, f"unreadable/{name}", why, aside)
        elif seen.mask_error is not None:
            yield _set_aside(seen, root, f"unreadable/{name}", seen.mask_error.message, aside)
        elif seen.look.digest in first_of:
            why = f"the same file as {first_of[seen.look.digest]}"
            yield _set_aside(seen, root, f"duplicates/{name}", why, aside)
        else:
            first_of[seen.look.digest] = name
            done = _mend_one(seen.item, seen.look, root, target, taken)
            if done.done:
                yield done
        on_event(Progress("mend pictures", number, total, "pictures"))
    for finding in report.findings:
        if finding.check in _LEFT_OUT:
            yield Mend(finding.where or "", "", (f"left out: {finding.message}",))


def _set_aside(seen: Seen, root: Path, name: str, why: str, taken: set[str]) -> Mend:
    target = root / SET_ASIDE / _free_name(name, seen.item.path.suffix, taken)
    for file in (seen.item.path, seen.item.caption_file, seen.item.mask):
        if file is not None and os.access(file, os.R_OK):
            mark = BESIDE if file == seen.item.mask and file != seen.item.path else ""
            write_with(target.with_name(f"{target.stem}{mark}{file.suffix}"), partial(_copy, file))
    return Mend(str(seen.item.path), target.relative_to(root).as_posix(), (f"set aside: {why}",))


def _mend_one(item: Item, look: Look, root: Path, wanted: str, taken: set[str]) -> Mend:
    done = []
    stored = look.stored
    reasons = {
        "turned upright": stored.turn != 1,
        "print colours converted to sRGB": stored.colours == "CMYK",
        "16 bits reduced to 8": stored.bits == 16,
        f"{stored.profile} converted to sRGB": stored.profile is not None,
    }
    done += [reason for reason, given in reasons.items() if given]
    suffix = item.path.suffix.lower()
    if done:
        suffix = ".png"
    elif suffix not in EXTENSIONS[stored.format]:
        suffix = EXTENSIONS[stored.format][0]
        done.append(f"extension of {stored.format} given")
    name = _free_name(wanted, suffix, taken)
    if Path(name).with_suffix("") != Path(wanted).with_suffix(""):
        done.append("name made safe")
    target = root / name
    if suffix == ".png" and any(reasons.values()):
        write_with(target, lambda temporary: read_with_alpha(item.path)[0].save(temporary, "PNG"))
    else:
        write_with(target, partial(_copy, item.path))
    if item.mask is not None and item.mask != item.path:
        copy = target.with_name(f"{target.stem}{BESIDE}.png")
        write_with(copy, lambda temporary: read_mask(item.mask or item.path, item.path).save(temporary, "PNG"))
    done += _mend_caption(item, target)
    return Mend(str(item.path), name, tuple(done))


def _free_name(name: str, suffix: str, taken: set[str]) -> str:
    """The safe form of a path within the copy, with a number where another picture has it (whatever its case)."""
    *parents, last = name.split("/")
    parts = [*(safe_name(parent) for parent in parents), safe_name(str(Path(last).with_suffix("")))]
    stem = candidate = "/".join(parts)
    number = 2
    while candidate.casefold() in taken:
        candidate, number = f"{stem}-{number}", number + 1
    taken.add(candidate.casefold())
    return candidate + suffix


def _mend_caption(item: Item, target: Path) -> list[str]:
    """Writes the caption beside the picture as one line of UTF-8, and says what was done to it."""
    file = item.caption_file
    if file is None or (item.caption and not _is_plain(item.folder)):
        if not item.caption:
            return []
        write_bytes(target.with_suffix(".txt"), f"{item.caption}\n".encode())
        return [f"caption taken from {Path(item.caption_place or '').name}"]
    try:
        files = _captions_beside(item.path) if _is_plain(item.folder) else [file]
        others = [(other, *_decoded(other.read_bytes())) for other in files]
    except OSError as error:
        return [f"caption left out: {(error.strerror or str(error)).lower()}"]
    file, text, encoding = next((each for each in others if each[1]), others[0])
    done = [] if encoding == "UTF-8" else [f"caption was {encoding}"]
    for other, _, _ in others:
        if other != file:
            # Beside the copy of its picture, under a name that no trainer takes for a caption.
            aside = target.parent / SET_ASIDE / "captions" / f"{target.stem}{other.suffix}"
            write_with(aside, partial(_copy, other))
            done.append(f"{file.name} taken, {other.name} set aside")
    if not text:
        return [*done, "empty caption left out"]
    written = f"{text}\n".encode()
    if encoding == "UTF-8" and file.read_bytes().strip() != written.strip():
        done.append("caption tidied")
    if file.suffix != ".txt":
        done.append(f"{file.suffix} renamed to .txt")
    write_bytes(target.with_suffix(".txt"), written)
    return done


def _is_plain(row: FolderConfig) -> bool:
    """Whether captions are what stands in the files beside the pictures, and nothing else."""
    return (row.captions, row.caption_prefix, row.caption_suffix, row.caption_lines) == ("auto", "", "", "all")


def _captions_beside(picture: Path) -> list[Path]:
    """All caption files of a picture; they may differ in the case of their ending."""
    own = stem_of(picture)
    return sorted(file for file in picture.parent.iterdir() if file.suffix.lower() in SUFFIXES and stem_of(file) == own)


def _decoded(content: bytes) -> tuple[str, str]:
    """A caption as one line of text, and its encoding: UTF-8, UTF-16 by its mark or its zeros, else Windows-1252."""
    encoding = "Windows-1252"
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "UTF-16"
    elif content.count(0) * 4 > len(content):
        encoding = "UTF-16-LE" if content[1:2] == b"\0" else "UTF-16-BE"
    else:
        with suppress(UnicodeDecodeError):
            return tidy(content.decode("utf-8-sig").replace("\0", " ")), "UTF-8"
    return tidy(content.decode(encoding, errors="replace").replace("\0", " ")), encoding


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
