"""Captions: text files beside the pictures, and the trigger word inside them."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from fluxtune.errors import DataError

SUFFIXES = (".txt", ".caption")


def stem_of(file: Path) -> str:
    """What a picture and its caption share: the path without the extension, in one Unicode form (NFC).

    Systems write an accented letter as one sign or as two; both are the same name to the user.
    """
    return unicodedata.normalize("NFC", str(file.with_suffix("")))


PLACEHOLDER = "[trigger]"
"""What stands for the trigger word in captions that were written for ai-toolkit."""


def captions_by_stem(files: Iterable[Path], suffixes: Iterable[str] = SUFFIXES) -> dict[str, list[Path]]:
    """The caption files among ``files``, by their endings (in lower case), grouped by ``stem_of``."""
    found: dict[str, list[Path]] = defaultdict(list)
    wanted = tuple(suffixes)
    for file in files:
        if ending := next((each for each in wanted if file.name.lower().endswith(each)), None):
            # An ending may have several dots: a.tags.txt belongs to a.png.
            found[stem_of(file.with_name(f"{file.name[: -len(ending)]}.txt"))].append(file)
    return found


def read_caption(file: Path, first_line: bool = False) -> str:
    """A caption as one line of NFC text with single spaces; empty where the file is.

    Args:
        first_line: what follows the first line with words on it does not count.

    Raises:
        DataError: unreadable, or not UTF-8 text (with or without a byte order mark); the byte is named.
    """
    text = _read(file)
    if not first_line:
        return tidy(text)
    lines = text.split("\n")
    return tidy(lines[_first_with_words(lines)])


def with_first_line(file: Path, caption: str) -> str:
    """What a file holds, but for its last line break, with another caption in the line that counts where only the
    first does.

    Raises:
        DataError: as `read_caption`.
    """
    lines = _read(file).split("\n")
    place = _first_with_words(lines)
    lines[place] = caption + ("\r" if lines[place].endswith("\r") else "")
    return "\n".join(lines).removesuffix("\n")


def _first_with_words(lines: list[str]) -> int:
    return next((number for number, line in enumerate(lines) if line.strip()), 0)


def _read(file: Path) -> str:
    mend = "save the caption as UTF-8 text"
    try:
        content = file.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(
            f"the caption cannot be read: {reason}", where=str(file), hint=mend, check="bad-caption"
        ) from error
    if (zero := content.find(0)) >= 0:
        message = f"the caption holds a zero byte at position {zero}: it is UTF-16, or no text at all"
        raise DataError(message, where=str(file), hint=mend, check="bad-caption")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The codec counts from behind a byte order mark; the user's editor counts from the start.
        position = error.start + len(content) - len(error.object)
        message = f"the caption is not UTF-8: byte 0x{error.object[error.start]:02x} at position {position}"
        raise DataError(message, where=str(file), hint=mend, check="bad-caption") from error


def tidy(text: str) -> str:
    """One line, single spaces, none at the ends, Unicode composed (NFC)."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


def has_trigger(caption: str, trigger: str) -> bool:
    """Whether the trigger is in the caption as a whole word, in the same case, or its placeholder."""
    return PLACEHOLDER in caption or _whole_word(trigger).search(caption) is not None


def with_trigger(caption: str, trigger: str) -> str:
    """The caption with the trigger for its placeholder or in front, or as it is where the trigger is already in it."""
    caption = caption.replace(PLACEHOLDER, tidy(trigger))
    if has_trigger(caption, trigger):
        return caption
    return f"{tidy(trigger)}, {caption}" if caption else tidy(trigger)


def with_class(caption: str, trigger: str, class_word: str) -> str:
    """The caption with the class word in each place of the trigger, for prior preservation."""
    return _whole_word(trigger).sub(lambda _: tidy(class_word), caption)


def mirrored(caption: str) -> str:
    """The caption of the picture in a mirror: the words left and right change places."""

    def other(match: re.Match[str]) -> str:
        word = match[0]
        swapped = "right" if word.lower() == "left" else "left"
        return swapped.upper() if word.isupper() else swapped.capitalize() if word[0].isupper() else swapped

    return re.sub(r"\b(?:left|right)\b", other, caption, flags=re.IGNORECASE)


def _whole_word(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(tidy(word))}(?!\w)")
