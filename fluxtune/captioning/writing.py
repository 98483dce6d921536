"""From what a captioner says of a picture to its caption file, by whoever decides, and what became of all of them."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from fluxtune.captioning.journal import Journals
from fluxtune.captioning.selection import caption_file
from fluxtune.captioning.wording import Wording
from fluxtune.config.schema import Config
from fluxtune.dataset.folder import Item, is_subject
from fluxtune.errors import DataError, StorageError
from fluxtune.events import Caption, Finding, Sink, Warning


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

    `counts` has `written`, `proposed`, `kept` (as they are), `declined` (in a review) and `failed`; `folders` how many
    were written in each. Pictures of which none of these became anything are waiting for the next call.
    """

    pictures: int
    counts: Counter[str] = field(default_factory=Counter)
    folders: Counter[str] = field(default_factory=Counter)
    captions: list[Caption] = field(default_factory=list)

    @classmethod
    def before(cls, items: Sequence[Item], chosen: Iterable[Item]) -> Outcome:
        """Of the pictures that are not among the chosen: captions are kept, and failed where they cannot be read."""
        names = {item.name for item in chosen}  # unlike files, which two folders may have in common
        left = (item for item in items if item.name not in names)
        return cls(len(items), Counter("failed" if item.caption is None else "kept" for item in left))

    def as_data(self) -> dict[str, Any]:
        """The outcome as JSON data."""
        return {
            "pictures": self.pictures,
            **{name: self.counts[name] for name in ("written", "proposed", "kept", "declined", "failed")},
            "waiting": self.pictures - self.counts.total(),
        }


def accept(proposal: Proposal) -> str:
    """Whoever decides takes everything as it is proposed."""
    return proposal.caption


@dataclass(frozen=True)
class Scribe:
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
            self.write(item, caption, caption)

    def write(self, item: Item, caption: str, content: str) -> None:
        """Writes a caption: its file is to hold the content and a line break.

        Raises:
            StorageError: nothing more can be written, as when the disk is full.
        """
        file = caption_file(item)
        if self.journals is not None:
            try:
                written = self.journals.write(item, content)
            except StorageError as error:
                if not _of_this_file_alone(error):
                    raise
                problem = DataError(error.message, where=str(file), hint=error.hint, check="unwritable-caption")
                self._fail(item, problem)
                return
            if not written:
                self.outcome.counts["kept"] += 1
                changed = "somebody changed the caption meanwhile: it is left as it is"
                self.on_event(Warning(changed, where=str(file)))
                return
            self.outcome.folders[item.folder.path] += 1
        self.outcome.counts["proposed" if self.journals is None else "written"] += 1
        event = Caption(item.name, str(file), caption, written=self.journals is not None)
        self.outcome.captions.append(event)
        self.on_event(event)

    def _fail(self, item: Item, error: DataError) -> None:
        self.outcome.counts["failed"] += 1
        self.on_event(Finding("error", error.check, error.message, error.where, error.hint, item.name))


def _of_this_file_alone(error: StorageError) -> bool:
    """Whether other files may well be written: the name is too long, it is a folder, or protected."""
    alone = (errno.ENAMETOOLONG, errno.EISDIR, errno.EACCES, errno.EPERM)
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in alone
