"""The data that a run trains with: recorded in its folder, and compared picture by picture when it goes on.

`RUN/captions.jsonl` has a line for each picture: its name, the SHA-256 of its file, its caption and where that came
from, its size, the SHA-256 of its mask, repeats, weight and kind. Where a run went on with other data, a line
``{"from_step": 500}`` follows, and then the lines of all pictures as they were from there on: the last such set counts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from fluxtune.config.resuming import Changed
from fluxtune.config.schema import Config
from fluxtune.config.settings import shown
from fluxtune.dataset.folder import Item
from fluxtune.dataset.pictures import CaptionBare, Picture, final_caption, picture_of
from fluxtune.dataset.survey import Look
from fluxtune.errors import DataError, Refusal
from fluxtune.events import Finding, Phase, Sink, Warning
from fluxtune.files import json_lines, write_text

AskCaptioner: TypeAlias = Callable[[Config, Sink, Sequence[tuple[Item, Look]]], Mapping[str, str]]
"""Settings, sink and pictures without a caption -> captions by name; ``captioning/missing.py`` has one."""

Row: TypeAlias = dict[str, Any]

RECORD = "captions.jsonl"
_FROM_STEP = "from_step"
_LATER_KEYS = ("mask", "repeats", "weight", "kind")
"""What the first runs did not record."""
_KEPT_START = 24
"""Letters of equal beginning that a changed caption is shown with."""


def as_recorded(run: Path, on_event: Sink, caption_bare: CaptionBare | None) -> CaptionBare:
    """Captions pictures as the run recorded them; only for others the captioner is asked, if there is one.

    Raises:
        StorageError: the record cannot be read.
    """
    recorded = {(row["picture"], row.get("sha256")): row["caption"] for row in _rows(run)}

    def captions(pictures: Sequence[tuple[Item, Look]]) -> Mapping[str, str]:
        keys = [(item.name, look.digest) for item, look in pictures]
        known = {key[0]: recorded[key] for key in keys if key in recorded}
        if known:
            on_event(Phase("caption pictures", f"{len(known)} as this run recorded them"))
        others = [(item, look) for item, look in pictures if item.name not in known]
        return {**known, **caption_bare(others)} if others and caption_bare else known

    return captions


def record_data(run: Path, pictures: Iterable[Picture], step: int = 0) -> None:
    """Write down the data of a run; behind that of before, where it goes on with other data from ``step`` on.

    Raises:
        StorageError: the record cannot be written.
    """
    before, now = list(json_lines(run / RECORD)), [_row(picture) for picture in pictures]
    if _last_set(before) == now:
        return
    parts = [*before, {_FROM_STEP: step}, *now] if before else now
    write_text(run / RECORD, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in parts))


def compare_data(
    run: Path,
    usable: Sequence[tuple[Item, Look]],
    config: Config,
    settings: Sequence[Changed],
    accept: Iterable[Refusal],
    on_event: Sink,
    has_trained: bool,
) -> None:
    """Tell every difference between the pictures and what the run recorded of them, and refuse it unless accepted.

    Args:
        usable: the pictures as they are now.
        settings: changed ones that go with the data.
        has_trained: the run has a checkpoint; without a record of its data, that is worth a warning.

    Raises:
        DataError: something is different, and ``accept`` has no ``Refusal.CHANGED_DATA``.
    """
    recorded = _rows(run)
    if not recorded and has_trained:
        on_event(_unknown("what it was trained with", run))
    elif any(key not in row for row in recorded for key in _LATER_KEYS):
        on_event(_unknown("masks, repeats, weights and kinds of its pictures", run))
    findings = [_finding("setting-changed", str(change), where=change.key) for change in settings]
    findings += _differences(recorded, usable, config) if recorded else []
    for finding in findings:
        on_event(finding)
    if not findings:
        return
    message = f"the data is not what this run was trained with: {_counted(findings)}"
    if Refusal.CHANGED_DATA not in accept:
        raise DataError(
            message,
            where=str(run),
            hint="put it back; or --accept changed-data goes on with the data as it is now",
            check="changed-data",
        )
    on_event(Warning(f"{message}; it goes on with the data as it is now, as accepted"))


def _differences(recorded: list[Row], usable: Sequence[tuple[Item, Look]], config: Config) -> Iterator[Finding]:
    """Picture by picture, then those that are gone, then the order."""
    before = {row["picture"]: row for row in recorded}
    names = {item.name for item, _ in usable}
    gone = [row for row in recorded if row["picture"] not in names]
    order = []
    for item, look in usable:
        row, place = before.get(item.name), str(item.path)
        if row is None and (row := _renamed(gone, look.digest)):
            yield _finding("picture-renamed", f"it was {shown(row['picture'])}", place, item.name)
        if row is None:
            yield _finding("picture-added", "the run has not seen it so far", place, item.name)
            continue
        order.append(row["picture"])
        now = _row(picture_of(item, look, final_caption(item, config.dataset)))
        if not item.caption and config.dataset.missing_captions == "caption":
            now["caption"] = row["caption"]  # it is taken from the record
        yield from _changes(row, now, place, item.name)
    for row in gone:
        yield _finding("picture-removed", "it is not in the data set any more", picture=row["picture"])
    was_order = [row["picture"] for row in recorded if row["picture"] in set(order)]
    if was_order != order:
        yield _finding("order-changed", "the pictures come in another order")


def _renamed(gone: list[Row], digest: str) -> Row | None:
    """The picture that has another name now, taken from those that seemed to be gone."""
    row = next((row for row in gone if row.get("sha256") == digest), None)
    if row is not None:
        gone.remove(row)
    return row


def _changes(was: Row, now: Row, place: str, name: str) -> Iterator[Finding]:
    if was.get("sha256") != now["sha256"]:
        yield _finding("picture-changed", "its file is another one", place, name)
    if was["caption"] != now["caption"]:
        yield _finding("caption-changed", _of_captions(was["caption"], now["caption"]), place, name)
    if "mask" in was and was["mask"] != now["mask"]:
        changed = "it has a mask now" if was["mask"] is None else "its mask is another one"
        yield _finding("mask-changed", changed if now["mask"] else "it has no mask any more", place, name)
    for key in ("repeats", "weight", "kind"):
        if key in was and was[key] != now[key]:
            yield _finding(f"{key}-changed", f"{key} was {shown(was[key])}, is now {shown(now[key])}", place, name)


def _of_captions(was: str, now: str) -> str:
    """Both captions, without most of a long beginning that they share."""
    pairs = enumerate(zip(was, now, strict=False))
    same = next((place for place, (one, other) in pairs if one != other), min(len(was), len(now)))
    skip = max(0, same - _KEPT_START)
    start = "..." if skip else ""
    return f"its caption was {shown(start + was[skip:])}, is now {shown(start + now[skip:])}"


def _counted(findings: Sequence[Finding]) -> str:
    """``2 pictures added, 1 caption changed``"""
    parts = []
    for check, number in Counter(finding.check for finding in findings).items():
        noun, what = check.split("-")
        parts.append(f"{number} {noun if number == 1 else noun.removesuffix('s') + 's'} {what}")
    return ", ".join(parts)


def _finding(check: str, message: str, where: str | None = None, picture: str | None = None) -> Finding:
    return Finding("warning", check, message, where or picture, picture=picture)


def _unknown(what: str, run: Path) -> Warning:
    return Warning(f"this run did not record {what}: whether that has changed cannot be told", where=str(run / RECORD))


def _rows(run: Path) -> list[Row]:
    """The last set of pictures that the run recorded; of several lines of a picture, the last one counts."""
    rows = _last_set(list(json_lines(run / RECORD)))
    named = [row for row in rows if isinstance(row.get("picture"), str) and isinstance(row.get("caption"), str)]
    return list({row["picture"]: row for row in named}.values())


def _last_set(rows: list[Row]) -> list[Row]:
    starts = [number for number, row in enumerate(rows) if _FROM_STEP in row]
    return rows[starts[-1] + 1 :] if starts else rows


def _row(picture: Picture) -> Row:
    return {
        "picture": picture.name,
        "sha256": picture.digest,
        "caption": picture.caption,
        "source": picture.caption_source,
        "size": list(picture.size),
        "mask": picture.mask_digest,
        "repeats": picture.repeats,
        "weight": picture.weight,
        "kind": "train" if picture.is_subject else "regularization",
    }
