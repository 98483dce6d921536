"""Captioning folders of pictures, from the settings to the caption files: by a captioner, or by wording anew."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

from fluxtune.captioning.batches import BatchSize, caption_each
from fluxtune.captioning.captioner import find_captioner, open_captioner
from fluxtune.captioning.journal import Journals
from fluxtune.captioning.selection import all_pictures, to_caption
from fluxtune.captioning.wording import Wording
from fluxtune.captioning.writing import Decide, EndOfReview, Outcome, Scribe, accept
from fluxtune.config.schema import Config
from fluxtune.dataset.captions import read_caption, with_first_line
from fluxtune.dataset.folder import Item, is_subject
from fluxtune.dataset.images import open_image
from fluxtune.environment.device import pick_device, warn_of_the_processor
from fluxtune.events import Phase, Progress, Sink, ignore
from fluxtune.nano import EMBEDDED

T = TypeVar("T")


def caption(
    config: Config,
    on_event: Sink,
    decide: Decide = accept,
    dry_run: bool = False,
    limit: int | None = None,
) -> Outcome:
    """Captions the pictures of all folders that have no caption yet, or whose captions are to be written anew.

    Each caption is on disk before the next is made, so work that is cut off goes on where it was.

    Args:
        decide: what is to be written of each proposal.
        dry_run: write nothing.
        limit: caption so many pictures at most; those that cannot be captioned do not count.

    Raises:
        DataError: there is no folder, or no picture in it.
        UsageError: the prompt or the template cannot be used.
        BaseModelError: the captioner is missing, gated, or no captioner.
        StorageError: the captions cannot be written, or another process is captioning the folder.
        OutOfMemoryError: the captioner does not fit, even with one picture at a time.
    """
    Wording.of(config)
    items = all_pictures(config, on_event)
    journals = Journals(config, _same_sitting(config))
    chosen = list(to_caption(items, config.captioning.existing, on_event))
    if not chosen and (dry_run or not journals.go_on):
        return Outcome.before(items, chosen)
    with nullcontext() if dry_run else journals.held(chosen):
        # Once more, for others may have written captions until the folders were held.
        waiting = list(to_caption(journals.waiting(chosen), config.captioning.existing, ignore))
        part, rest = _split(waiting, limit)
        outcome = Outcome.before(items, waiting)
        if part:
            captioner = open_captioner(find_captioner(config, on_event), config, device_for(config, on_event), on_event)
            again = ", going on where it was cut off" if journals.go_on else ""
            on_event(Phase("caption", f"{len(part)} of {len(items)} pictures{again}"))
            size = BatchSize(config.captioning.batch_size)
            scribe = Scribe(config, outcome, None if dry_run else journals, on_event, decide)
        while part:
            failed = outcome.counts["failed"]
            said = caption_each(part, lambda item: open_image(item.path, config.dataset.background), captioner, size)
            try:
                for number, (item, text) in enumerate(with_progress(said, len(part), on_event), start=1):
                    scribe.take(item, text, number, len(part))
            except EndOfReview:
                return outcome
            # In the place of those that failed others come: else a limit would never get past them.
            part, rest = _split(rest, outcome.counts["failed"] - failed)
        if not dry_run and not rest:
            journals.finish()
    return outcome


def _split(items: Sequence[Item], at: int | None) -> tuple[Sequence[Item], Sequence[Item]]:
    """The first of them, up to so many, and the others; None takes all."""
    return (items, ()) if at is None else (items[:at], items[at:])


def reword(config: Config, on_event: Sink, dry_run: bool = False, limit: int | None = None) -> Outcome:
    """Words the captions that there are anew: trigger, prefix, suffix, template. No captioner is asked.

    What is worded so already is left as it is, so that with a limit the next call goes on behind it.

    Raises:
        DataError, UsageError, StorageError: as `caption`.
    """
    Wording.of(config)
    items = all_pictures(config, on_event)
    journals = Journals(config, {"reword": True, **_same_sitting(config)})
    changes = list(_rewordings(items, config))
    to_change = [item for item, *_ in changes]
    with nullcontext() if dry_run or not changes else journals.held(to_change):
        # Once more, for others may have changed captions until the folders were held.
        changes = list(_rewordings(journals.waiting(to_change), config))
        part = changes[:limit]
        outcome = Outcome.before(items, (item for item, *_ in changes))
        scribe = Scribe(config, outcome, None if dry_run else journals, on_event)
        for change in part:
            scribe.write(*change)
        if not dry_run and len(part) == len(changes):
            journals.finish()
    return outcome


def _rewordings(items: Sequence[Item], config: Config) -> Iterator[tuple[Item, str, str]]:
    """What `Scribe.write` takes, of each caption file that says something else when it is worded anew."""
    seen: set[Path] = set()
    for item in items:
        file = item.caption_file
        if not item.caption or file is None or file.resolve() in seen:
            continue
        seen.add(file.resolve())
        # As it stands in the file: what its folder's settings put around it is not to be written there.
        first_line = item.folder.caption_lines == "first"
        written = read_caption(file, first_line)
        caption = Wording.of(config, is_subject(item)).reworded(written, item.path)
        if caption != written:
            yield item, caption, with_first_line(file, caption) if first_line else caption


def device_for(config: Config, on_event: Sink) -> str:
    """Where the captioner works; a big one on a processor is warned of."""
    device = pick_device(config.captioning.device)
    if config.captioning.captioner != EMBEDDED:
        warn_of_the_processor(device, config.captioning.device, on_event)
    return device


def _same_sitting(config: Config) -> dict[str, Any]:
    """What makes a sitting the same one when it is gone on with."""
    chosen = config.captioning.model_dump(exclude={"batch_size", "device", "precision"})
    return {**chosen, "trigger": config.dataset.trigger, "class_word": config.dataset.class_word}


def with_progress(said: Iterator[T], total: int, on_event: Sink) -> Iterator[T]:
    """Reports how far it is after each picture; rate and time left are of the pictures so far."""
    started = time.monotonic()
    for done, each in enumerate(said, start=1):
        yield each
        rate = done / max(1e-9, time.monotonic() - started)
        on_event(Progress("caption", done, total, "pictures", rate, (total - done) / rate))
