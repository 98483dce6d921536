"""Where else than beside the picture a caption may stand: the metadata files of Hugging Face's imagefolder, and the
folder names of kohya's trainers."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fluxtune.dataset.captions import tidy
from fluxtune.dataset.findings import found
from fluxtune.events import Finding

METADATA = ("metadata.jsonl", "metadata.csv")
FILE_COLUMN = "file_name"
CAPTION_COLUMNS = ("text", "caption", "prompt")
"""Names that the column of captions may have; the first one there counts."""

MOST_REPEATS = 500
"""A folder `2024_holiday` is a date, no request for 2,024 repeats."""


@dataclass(frozen=True)
class Row:
    """A caption of a metadata file, and where it stands (``file:line``)."""

    caption: str
    place: str


@dataclass(frozen=True)
class KohyaFolder:
    """What a folder name such as ``10_zorvex dog`` says: repeats, and the caption of pictures that have none."""

    repeats: int
    caption: str


def kohya_folder(name: str) -> KohyaFolder | None:
    """The meaning of a folder's name for kohya's trainers, or None if it has none."""
    match = re.fullmatch(r"([1-9]\d*)_(.+)", name)
    if match is None or int(match[1]) > MOST_REPEATS:
        return None
    return KohyaFolder(int(match[1]), tidy(match[2]))


def metadata_rows(files: Iterable[Path], findings: list[Finding]) -> dict[str, Row]:
    """The rows of all metadata files among ``files``: path of the picture (composed, NFC) -> caption.

    The picture's path in a row is relative to the metadata file's folder. Rows that cannot be understood, and rows of
    pictures that are not there, become findings.
    """
    present = {_composed(file) for file in files}
    rows: dict[str, Row] = {}
    for file in files:
        if file.name not in METADATA:
            continue
        for place, record in _records(file, findings):
            picture, caption = _understood(record, place, findings)
            if picture is None or caption is None:
                continue
            path = _composed(file.parent / picture)
            if path not in present:
                findings.append(found("stray-caption", f"there is no picture {picture}", where=place))
            elif path in rows:
                message = f"{picture} has a caption at {rows[path].place} already"
                findings.append(found("bad-metadata", message, where=place))
            else:
                rows[path] = Row(tidy(caption), place)
    return rows


def row_of(picture: Path, rows: dict[str, Row]) -> Row | None:
    """The row of a picture, if any."""
    return rows.get(_composed(picture))


def _composed(path: Path) -> str:
    return unicodedata.normalize("NFC", path.as_posix())


def _records(file: Path, findings: list[Finding]) -> Iterator[tuple[str, dict[str, object]]]:
    """(``file:line``, row) of a metadata file."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.reason if isinstance(error, UnicodeDecodeError) else (error.strerror or str(error)).lower()
        findings.append(found("bad-metadata", f"the file cannot be read as UTF-8 text: {reason}", where=str(file)))
        return
    if file.suffix == ".csv":
        yield from _csv_records(file, text, findings)
        return
    # Not splitlines: a caption may hold one of the rarer line separators, which JSON and CSV allow.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{file}:{number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            findings.append(found("bad-metadata", f"the line is no JSON: {error}", where=place))
            continue
        if isinstance(record, dict):
            yield place, record
        else:
            findings.append(found("bad-metadata", "the line is no JSON object", where=place))


def _csv_records(file: Path, text: str, findings: list[Finding]) -> Iterator[tuple[str, dict[str, object]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for record in reader:
            yield f"{file}:{reader.line_num}", {key: value for key, value in record.items() if key is not None}
    except csv.Error as error:
        findings.append(found("bad-metadata", f"the line is no CSV: {error}", where=f"{file}:{reader.line_num}"))


def _understood(record: dict[str, object], place: str, findings: list[Finding]) -> tuple[str | None, str | None]:
    """(picture, caption) of a row."""
    picture = record.get(FILE_COLUMN)
    column = next((name for name in CAPTION_COLUMNS if name in record), None)
    if not isinstance(picture, str) or not picture:
        columns = ", ".join(map(str, record))
        findings.append(found("bad-metadata", f"no {FILE_COLUMN} among {columns or 'its columns'}", where=place))
        return None, None
    caption = record.get(column) if column else None
    if not isinstance(caption, str):
        wanted = " or ".join(CAPTION_COLUMNS)
        findings.append(found("bad-metadata", f"no caption of {picture}: wanted {wanted}", where=place))
        return None, None
    if any(0xD800 <= ord(letter) <= 0xDFFF for letter in picture + caption):
        findings.append(
            found("bad-metadata", f"half a letter (a lone surrogate) in the row of {picture!a}", where=place)
        )
        return None, None
    return picture, caption
