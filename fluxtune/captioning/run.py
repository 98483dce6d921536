"""Captioning folders of pictures, from the settings to the caption files: by a captioner, or by wording anew."""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from fluxtune.captioning.batches import BatchSize, caption_each
from fluxtune.captioning.captioner import find_captioner, open_captioner
from fluxtune.captioning.journal import Journals
from fluxtune.captioning.selection import all_pictures, caption_file, to_caption
from fluxtune.captioning.wording import Wording
from fluxtune.config.schema import Config
from fluxtune.dataset.captions import read_caption
from fluxtune.dataset.folder import Item, is_subject
from fluxtune.dataset.images import open_image
from fluxtune.environment import pick_device, warn_of_the_processor
from fluxtune.errors import DataError, StorageError
from fluxtune.events import Caption, Finding, Phase, Progress, Sink, Warning
from fluxtune.nano import EMBEDDED

T = TypeVar("T")


@dataclass(frozen=True)
class Proposal:
    """A caption that may be written. `before` is the one that it would replace, if any."""

    picture: str
    path: Path
    file: Path
    before: str | None
    caption: str


class EndOfReview(Exception):
    """Whoever decides wants to see no more proposals; what was decided stays."""


Decide: TypeAlias = Callable[[Proposal], str | None]
"""Proposal -> the caption to write, or None to leave the picture as it is; may raise `EndOfReview`."""


@dataclass
class Outcome:
    """What became of the pictures: how many of each sort, and all captions that were proposed or written.

    `counts` has `written`, `proposed`, `kept` (as they are), `declined` (in a review) and `failed`; `folders` how many
    were written in each.
    """

    pictures: int
    counts: Counter[str] = field(default_factory=Counter)
    folders: Counter[str] = field(default_factory=Counter)
    captions: list[Caption] = field(default_factory=list)

    def take_said(
        self,
        item: Item,
        said: str | DataError,
        config: Config,
        decide: Decide,
        journals: Journals | None,
        on_event: Sink,
    ) -> None:
        """Takes what the captioner said of a picture, or what is wrong with the picture."""
        if isinstance(said, DataError):
            self.counts["failed"] += 1
            on_event(Finding("error", said.check, said.message, said.where, said.hint, item.name))
            return
        if not said.strip():
            self.counts["failed"] += 1
            hint = "ask it otherwise (--prompt), or choose another captioner"
            on_event(Finding("error", "empty-caption", "the captioner said nothing", str(item.path), hint, item.name))
            return
        worded = Wording.of(config, is_subject(item))(said, item.path)
        words = decide(Proposal(item.name, item.path, caption_file(item), item.caption or None, worded))
        if words is None:
            self.counts["declined"] += 1
        else:
            self.take(item, caption_file(item), words, journals, on_event)

    def take(self, item: Item, file: Path, words: str, journals: Journals | None, on_event: Sink) -> None:
        """Writes a caption, or only proposes it where there are no journals, and counts it.

        Raises:
            StorageError: nothing more can be written, as when the disk is full.
        """
        if journals is not None:
            try:
                written = journals.write(item, words)
            except StorageError as error:
                if not _of_this_file_alone(error):
                    raise
                self.counts["failed"] += 1
                on_event(Finding("error", "unwritable-caption", error.message, str(file), error.hint, item.name))
                return
            if not written:
                self.counts["kept"] += 1
                on_event(Warning("somebody changed the caption meanwhile: it is left as it is", where=str(file)))
                return
            self.folders[item.folder.path] += 1
        self.counts["proposed" if journals is None else "written"] += 1
        event = Caption(item.name, str(file), words, written=journals is not None)
        self.captions.append(event)
        on_event(event)

    def as_data(self) -> dict[str, Any]:
        """The outcome as JSON data."""
        return {
            "pictures": self.pictures,
            **{name: self.counts[name] for name in ("written", "proposed", "kept", "declined", "failed")},
        }


def caption(
    config: Config,
    on_event: Sink,
    decide: Decide = lambda proposal: proposal.caption,
    dry_run: bool = False,
    limit: int | None = None,
) -> Outcome:
    """Captions the pictures of all folders that have no caption yet, or whose captions are to be written anew.

    Each caption is on disk before the next is made, so work that is cut off goes on where it was.

    Args:
        decide: what is to be written of each proposal.
        dry_run: write nothing.
        limit: caption so many pictures at most.

    Raises:
        DataError: there is no folder, or no picture in it.
        UsageError: the prompt or the template cannot be used.
        BaseModelError: the captioner is missing, gated, or no captioner.
        StorageError: the captions cannot be written, or another process is captioning the folder.
        OutOfMemoryError: the captioner does not fit, even with one picture at a time.
    """
    Wording.of(config)
    items = all_pictures(config, on_event)
    journals = Journals(config, _asked(config))
    chosen = list(to_caption(items, config.captioning.existing, on_event))
    outcome = Outcome(len(items))
    if not chosen and (dry_run or not journals.go_on):
        outcome.counts["kept"] = len(items)
        return outcome
    with nullcontext() if dry_run else journals.held():
        waiting = journals.waiting(chosen)
        outcome.counts["kept"] = len(items) - len(waiting)
        part = waiting[:limit]
        if part:
            folder = find_captioner(config, on_event)
            captioner = open_captioner(folder, config, device_for(config, on_event), on_event)
            again = ", going on where it was cut off" if journals.go_on else ""
            on_event(Phase("caption", f"{len(part)} of {len(items)} pictures{again}"))
            size = BatchSize(config.captioning.batch_size)
            said = caption_each(part, lambda item: open_image(item.path, config.dataset.background), captioner, size)
            try:
                for item, text in with_progress(said, len(part), on_event):
                    outcome.take_said(item, text, config, decide, None if dry_run else journals, on_event)
            except EndOfReview:
                return outcome
        if not dry_run and len(part) == len(waiting):
            journals.finish()
    return outcome


def reword(config: Config, on_event: Sink, dry_run: bool = False) -> Outcome:
    """Words the captions that there are anew: trigger, prefix, suffix, template. No captioner is asked.

    Raises:
        DataError, UsageError, StorageError: as `caption`.
    """
    Wording.of(config)
    items = all_pictures(config, on_event)
    journals = Journals(config, {"reword": True, **_asked(config)})
    outcome = Outcome(len(items))
    with nullcontext() if dry_run else journals.held():
        for item in items:
            # As it stands in the file: what its folder's settings put around it is not to be written there.
            written = read_caption(item.caption_file) if item.caption and item.caption_file else ""
            worded = Wording.of(config, is_subject(item)).reworded(written, item.path)
            if not written or item.caption_file is None or worded == written or not journals.waiting([item]):
                outcome.counts["kept"] += 1
            else:
                outcome.take(item, item.caption_file, worded, None if dry_run else journals, on_event)
        if not dry_run:
            journals.finish()
    return outcome


def device_for(config: Config, on_event: Sink) -> str:
    """Where the captioner works; a big one on a processor is warned of."""
    device = pick_device(config.captioning.device)
    if config.captioning.captioner != EMBEDDED:
        warn_of_the_processor(device, config.captioning.device, on_event)
    return device


def _of_this_file_alone(error: StorageError) -> bool:
    """Whether other files may well be written: the name is too long, it is a folder, or protected."""
    alone = (errno.ENAMETOOLONG, errno.EISDIR, errno.EACCES, errno.EPERM)
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in alone


def _asked(config: Config) -> dict[str, Any]:
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
