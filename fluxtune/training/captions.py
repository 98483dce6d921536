"""The captions that a run trains with: recorded in its folder, and taken from there when it goes on.

`RUN/captions.jsonl` has a line for each picture: its name, the SHA-256 of its file, the caption and where that came
from. Where a picture has several, because captions changed before the run went on, the last one counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from fluxtune.config.schema import Config
from fluxtune.dataset.folder import Item
from fluxtune.dataset.pictures import CaptionBare, Picture
from fluxtune.dataset.survey import Look
from fluxtune.events import Phase, Sink
from fluxtune.files import json_lines, write_text

AskCaptioner: TypeAlias = Callable[[Config, Sink, Sequence[tuple[Item, Look]]], Mapping[str, str]]
"""Settings, sink and pictures without a caption -> captions by name; ``captioning/missing.py`` has one."""

RECORD = "captions.jsonl"


def as_recorded(run: Path, on_event: Sink, caption_bare: CaptionBare | None) -> CaptionBare:
    """Captions pictures as the run recorded them; only for others the captioner is asked, if there is one.

    Raises:
        StorageError: the record cannot be read.
    """
    recorded = {
        (row.get("picture"), row.get("sha256")): caption
        for row in json_lines(run / RECORD)
        if isinstance(caption := row.get("caption"), str) and isinstance(row.get("picture"), str)
    }

    def captions(pictures: Sequence[tuple[Item, Look]]) -> Mapping[str, str]:
        keys = [(item.name, look.digest) for item, look in pictures]
        known = {key[0]: recorded[key] for key in keys if key in recorded}
        if known:
            on_event(Phase("caption pictures", f"{len(known)} as this run recorded them"))
        others = [(item, look) for item, look in pictures if item.name not in known]
        return {**known, **caption_bare(others)} if others and caption_bare else known

    return captions


def record_captions(run: Path, pictures: Iterable[Picture]) -> None:
    """Write down the captions of a run, behind those of before where it went on with others.

    Raises:
        StorageError: the record cannot be written.
    """
    rows = list(json_lines(run / RECORD))
    last = {str(row.get("picture")): row for row in rows}
    new = [row for row in map(_row, pictures) if row != last.get(row["picture"])]
    if new:
        write_text(run / RECORD, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in (*rows, *new)))


def _row(picture: Picture) -> dict[str, str]:
    return {
        "picture": picture.name,
        "sha256": picture.digest,
        "caption": picture.caption,
        "source": picture.caption_source,
    }
