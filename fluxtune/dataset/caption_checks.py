"""What is wrong with captions: missing, empty, without the trigger, all the same, too long."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fluxtune.dataset.captions import PLACEHOLDER, has_trigger, tidy
from fluxtune.dataset.findings import found
from fluxtune.dataset.folder import Item, is_subject
from fluxtune.events import Finding


@dataclass(frozen=True)
class TokenLimit:
    """How many tokens of a caption a text encoder reads, and how to count them.

    ``exact`` is False where ``count`` is but an estimate.
    """

    check: str
    encoder: str
    limit: int
    count: Callable[[str], int]
    exact: bool


def estimated_tokens(caption: str) -> int:
    """Tokens of a caption where no tokenizer is at hand, the marks of begin and end among them.

    One for each word, one more for each six letters after its first three; one for each letter beyond ASCII, two where
    it writes a syllable or a word; one for each digit and sign. For English this is within an eighth of what CLIP's own
    vocabulary gives (docs/validate.md).
    """
    pieces = re.findall(r"[^\W\d_]+|\d|_|[^\w\s]+", caption)
    return 2 + sum(_of_piece(piece) for piece in pieces)


def _of_piece(piece: str) -> int:
    if not piece.isalpha():
        return 1
    if piece.isascii():
        return 1 + max(0, len(piece) - 3) // 6
    return sum(2 if ord(letter) >= _SYLLABLES else 1 for letter in piece if not letter.isascii()) + 1


_SYLLABLES = 0x2E80
"""From here on Unicode has the scripts of East Asia."""


ESTIMATES = (
    TokenLimit("long-for-clip", "CLIP", 77, estimated_tokens, exact=False),
    TokenLimit("long-for-t5", "T5", 512, estimated_tokens, exact=False),
)


_MISSING = {
    "trigger": "`fluxtune train` takes the trigger word alone for it; or write it: fluxtune caption FOLDER",
    "caption": "`fluxtune train` asks captioning.captioner for it; to look at it first: fluxtune caption FOLDER",
}
"""What is done about a missing caption, by `dataset.missing_captions`."""


def check_captions(
    items: Iterable[Item], trigger: str | None, limits: Iterable[TokenLimit] = ESTIMATES, missing: str = "error"
) -> Iterator[Finding]:
    """Findings of the captions that could be read.

    Args:
        limits: one for each text encoder; none where they are not to be counted.
        missing: the setting ``dataset.missing_captions``.
    """
    readable = [item for item in items if item.caption is not None]
    for item in readable:
        if not item.caption:
            hint = _MISSING.get(missing) if missing == "caption" or is_subject(item) else None
            yield _without_words(item, hint)
    written = [item for item in readable if item.caption]
    if trigger is not None:
        yield from _check_trigger([item for item in written if is_subject(item)], tidy(trigger))
    for item in written if trigger is None else ():
        if PLACEHOLDER in (item.caption or ""):
            yield _one(item, "no-trigger", f"{PLACEHOLDER} stands in it, but dataset.trigger is unset")
    yield from _check_sameness(written)
    for limit in limits:
        yield from _check_length(written, limit)


def _one(item: Item, check: str, message: str, hint: str | None = None) -> Finding:
    return found(check, message, where=item.caption_place or str(item.path), hint=hint, picture=item.name)


def _without_words(item: Item, hint: str | None) -> Finding:
    if item.caption_place is None:
        return _one(item, "missing-caption", "there is no caption beside it", hint)
    return _one(item, "empty-caption", "the caption is empty", hint)


def _check_trigger(items: list[Item], trigger: str) -> Iterator[Finding]:
    for item in items:
        caption = item.caption or ""
        if has_trigger(caption, trigger):
            continue
        if re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption, re.IGNORECASE):
            yield _one(item, "trigger-spelling", f"the trigger word is {trigger!r}, written otherwise here")
        else:
            yield _one(item, "no-trigger", f"the trigger word {trigger!r} is not in it")


def _check_sameness(items: list[Item]) -> Iterator[Finding]:
    first: dict[str, Item] = {}
    for item in items:
        other = first.setdefault(item.caption or "", item)
        # Pictures that share one caption file, or a folder's name, are told as such.
        if other is not item and other.caption_place != item.caption_place:
            yield _one(item, "same-caption", f"the same caption as {other.name}")


def _check_length(items: list[Item], limit: TokenLimit) -> Iterator[Finding]:
    counts: dict[str, int] = {}
    for item in items:
        caption = item.caption or ""
        if caption not in counts:
            counts[caption] = limit.count(caption)
        if counts[caption] > limit.limit:
            number = f"{counts[caption]}" if limit.exact else f"about {counts[caption]}"
            yield _one(item, limit.check, f"{number} tokens, {limit.encoder} reads {limit.limit}")
