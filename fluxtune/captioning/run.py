"""Captioning folders of pictures, from the settings to the caption files: by a captioner, or by wording anew."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from fluxtune.dataset.captions import read_caption, with_first_line
from fluxtune.dataset.folder import Item, is_subject
from fluxtune.dataset.images import open_image
from fluxtune.environment import pick_device, warn_of_the_processor
from fluxtune.errors import DataError
from fluxtune.events import Caption, Finding, Phase, Progress, Sink
from fluxtune.nano import EMBEDDED

T = TypeVar("T")


@dataclass(frozen=True)
class Proposal:
    """A caption that may be written, of the picture `number` of `total`. `before` is the one that it would replace, if
    any."""

    path: Path
    before: str | None
    caption: str
    number: int
    total: int


class EndOfReview(Exception):
    """Whoever decides wants to see no more proposals; what was decided stays."""


Decide: TypeAlias = Callable[[Proposal], str | None]
"""Proposal -> the caption to write, or None to leave the picture as it is; may raise `EndOfReview`."""


@dataclass
class Outcome:
    """What became of the pictures: how many of each sort, and all captions that were proposed or written.

    `counts` has `written`, `proposed`, `kept` (as they are), `declined` (in a review) and `failed`.
    """

    pictures: int
    counts: Counter[str] = field(default_factory=Counter)
    captions: list[Caption] = field(default_factory=list)

    @classmethod
    def before(cls, items: Sequence[Item], chosen: Iterable[Item]) -> Outcome:
        """Of the pictures that are not among the chosen: captions are kept, and failed where they cannot be read."""
        paths = {item.path for item in chosen}
        left = (item for item in items if item.path not in paths)
        return cls(len(items), Counter("failed" if item.caption is None else "kept" for item in left))

    def as_data(self) -> dict[str, Any]:
        """The outcome as JSON data."""
        return {
            "pictures": self.pictures,
            **{name: self.counts[name] for name in ("written", "proposed", "kept", "declined", "failed")},
        }


def accept(proposal: Proposal) -> str:
    """Whoever decides takes everything as it is proposed."""
    return proposal.caption


@dataclass(frozen=True)
class _Scribe:
    """Writes captions, counts and reports them; only proposes them where there are no journals."""

    config: Config
    outcome: Outcome
    journals: Journals | None
    on_event: Sink
    decide: Decide = accept

    def take(self, item: Item, said: str | DataError, number: int, total: int) -> None:
        """Takes what the captioner said of a picture, or what is wrong with the picture."""
        if isinstance(said, DataError):
            self._fail(item, said)
            return
        if not said.strip():
            hint = "ask it otherwise (--prompt), or choose another captioner"
            problem = "the captioner said nothing"
            self._fail(item, DataError(problem, where=str(item.path), hint=hint, check="empty-caption"))
            return
        worded = Wording.of(self.config, is_subject(item))(said, item.path)
        caption = self.decide(Proposal(item.path, item.caption or None, worded, number, total))
        if caption is None:
            self.outcome.counts["declined"] += 1
        else:
            self.write(item, caption_file(item), caption, caption)

    def write(self, item: Item, file: Path, caption: str, content: str) -> None:
        """Writes a caption: the file is to hold the content and a line break."""
        if self.journals is not None:
            self.journals.of(item).write(file, content)
        self.outcome.counts["proposed" if self.journals is None else "written"] += 1
        event = Caption(item.name, str(file), caption, written=self.journals is not None)
        self.outcome.captions.append(event)
        self.on_event(event)

    def _fail(self, item: Item, error: DataError) -> None:
        self.outcome.counts["failed"] += 1
        self.on_event(Finding("error", error.check, error.message, error.where, error.hint, item.name))


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
        limit: caption so many pictures at most.

    Raises:
        DataError: there is no folder, or no picture in it.
        UsageError: the prompt or the template cannot be used.
        BaseModelError: the captioner is missing, gated, or no captioner.
        StorageError: the captions cannot be written.
        OutOfMemoryError: the captioner does not fit, even with one picture at a time.
    """
    Wording.of(config)
    items = all_pictures(config, on_event)
    journals = Journals(config, _same_sitting(config))
    chosen = to_caption(items, config.captioning.existing, on_event)
    waiting = [item for item in chosen if not journals.of(item).has_written(caption_file(item))]
    part = waiting[:limit]
    outcome = Outcome.before(items, waiting)
    if not part:
        if not dry_run:
            journals.finish()
        return outcome
    folder = find_captioner(config, on_event)
    with nullcontext() if dry_run else journals.sitting():
        captioner = open_captioner(folder, config, device_for(config, on_event), on_event)
        again = ", going on where it was cut off" if journals.go_on else ""
        on_event(Phase("caption", f"{len(part)} of {len(items)} pictures{again}"))
        size = BatchSize(config.captioning.batch_size)
        said = caption_each(part, lambda item: open_image(item.path, config.dataset.background), captioner, size)
        scribe = _Scribe(config, outcome, None if dry_run else journals, on_event, decide)
        try:
            for number, (item, text) in enumerate(with_progress(said, len(part), on_event), start=1):
                scribe.take(item, text, number, len(part))
        except EndOfReview:
            return outcome
        if not dry_run and len(part) == len(waiting):
            journals.finish()
    return outcome


def reword(config: Config, on_event: Sink, dry_run: bool = False, limit: int | None = None) -> Outcome:
    """Words the captions that there are anew: trigger, prefix, suffix, template. No captioner is asked.

    What is worded so already is left as it is, so that with a limit the next call goes on behind it.

    Raises:
        DataError, UsageError, StorageError: as `caption`.
    """
    Wording.of(config)
    items = all_pictures(config, on_event)
    journals = Journals(config, {"reword": True, **_same_sitting(config)})
    changes = list(_rewordings(items, config, journals))
    part = changes[:limit]
    outcome = Outcome.before(items, (item for item, *_ in changes))
    scribe = _Scribe(config, outcome, None if dry_run else journals, on_event)
    with nullcontext() if dry_run or not part else journals.sitting():
        for change in part:
            scribe.write(*change)
        if not dry_run and len(part) == len(changes):
            journals.finish()
    return outcome


def _rewordings(items: Sequence[Item], config: Config, journals: Journals) -> Iterator[tuple[Item, Path, str, str]]:
    """What `_Scribe.write` takes, of each caption file that says something else when it is worded anew."""
    seen: set[Path] = set()
    for item in items:
        file = item.caption_file
        if not item.caption or file is None or file in seen or journals.of(item).has_written(file):
            continue
        seen.add(file)
        # As it stands in the file: what its folder's settings put around it is not to be written there.
        first_line = item.folder.caption_lines == "first"
        written = read_caption(file, first_line)
        caption = Wording.of(config, is_subject(item)).reworded(written, item.path)
        if caption != written:
            yield item, file, caption, with_first_line(file, caption) if first_line else caption


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
