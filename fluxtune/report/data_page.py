"""`fluxtune validate --report`: a page with every picture of a data set, its crop and its problems."""

from __future__ import annotations

import base64
import io
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

from fluxtune import __version__
from fluxtune.dataset.findings import CHECKS, by_check
from fluxtune.dataset.images import open_image
from fluxtune.dataset.survey import Seen
from fluxtune.dataset.validation import Report
from fluxtune.errors import DataError
from fluxtune.events import Progress, Sink
from fluxtune.files import write_text
from fluxtune.redaction import for_sharing, redacted

THUMBNAIL = 192
"""Longer side in pixels."""
_QUALITY = 70
_WORKERS = min(4, os.cpu_count() or 1)
_PLACE = "__REPORT__"
"""Where the template takes the data."""


def write_data_page(report: Report, file: Path, background: str, on_event: Sink) -> None:
    """Write the report as one HTML file.

    Args:
        background: ``#rrggbb`` that transparent pictures are laid on.

    Raises:
        StorageError: the file cannot be written; nothing half-written is left.
    """
    template = files("fluxtune.report").joinpath("data_page.html").read_text(encoding="utf-8")
    data = redacted(_page_data(report), for_sharing)
    for card, thumbnail in zip(data["pictures"], _thumbnails(report, background, on_event), strict=True):
        card["thumbnail"] = thumbnail
    # Within a script element nothing but "<" could end it, or begin a comment.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    write_text(file, template.replace(_PLACE, text))


def _page_data(report: Report) -> dict[str, Any]:
    """What the page's script reads: the report, by picture; thumbnails are still missing."""
    whole = report.as_data()
    rows = {row["path"]: row for row in whole["pictures"]}
    problems: dict[str, list[int]] = {}
    for index, finding in enumerate(report.findings):
        if finding.picture is not None:
            problems.setdefault(finding.picture, []).append(index)
    cards = []
    for seen in report.survey.seen:
        row = rows.get(str(seen.item.path), {})
        cards.append(
            {
                "name": seen.item.name,
                "caption": seen.item.caption or "",
                "size": [row["width"], row["height"]] if row else None,
                "samples": row.get("samples", []),
                "findings": problems.get(seen.item.name, []),
            }
        )
    return {
        "version": __version__,
        "folders": whole["folders"],
        "resolution": whole["resolution"],
        "counts": whole["counts"],
        "buckets": whole["buckets"],
        "checks": {
            check: {"severity": group[0].severity, "title": CHECKS[check].count(len(group))}
            for check, group in by_check(report.findings).items()
        },
        "findings": [
            {
                "severity": each.severity,
                "check": each.check,
                "message": each.message,
                "hint": each.hint,
                "where": None if each.picture else each.where,
            }
            for each in report.findings
        ],
        "pictures": cards,
    }


def _thumbnails(report: Report, background: str, on_event: Sink) -> Iterator[str]:
    """A JPEG in base64 of each picture, empty where it cannot be read."""
    total, started = len(report.survey.seen), time.monotonic()
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="thumbnail") as pool:
        for number, thumbnail in enumerate(pool.map(lambda seen: _thumbnail(seen, background), report.survey.seen), 1):
            rate = number / max(1e-9, time.monotonic() - started)
            on_event(Progress("make thumbnails", number, total, "pictures", rate, (total - number) / rate))
            yield thumbnail


def _thumbnail(seen: Seen, background: str) -> str:
    if seen.look is None:
        return ""
    try:
        image = open_image(seen.item.path, background)
    except DataError:  # it went, or changed, since it was looked at
        return ""
    image.thumbnail((THUMBNAIL, THUMBNAIL), reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
