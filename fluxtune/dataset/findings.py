"""Everything that the data checks can find: the one list of their names, and findings made from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from fluxtune.config.descriptions.documents import Remark
from fluxtune.errors import DataError, some_names
from fluxtune.events import Finding, Warning

Severity: TypeAlias = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Check:
    """One thing that is looked for; ``noun`` and ``heading`` together name what was found: 3 pictures *damaged or cut
    off*."""

    severity: Severity
    noun: str
    heading: str
    hint: str = ""

    def count(self, number: int) -> str:
        """``3 pictures damaged or cut off``."""
        return f"{number} {self.noun}{'' if number == 1 else 's'} {self.heading}"


_SAVE_AGAIN = "save it again as PNG or JPEG, or take it out of the folder"

CHECKS: dict[str, Check] = {
    # What training would fail on, or learn wrongly.
    "no-folder": Check("error", "folder", "not there, or a file"),
    "unreadable-folder": Check("error", "folder", "that cannot be read"),
    "no-pictures": Check("error", "folder", "without pictures"),
    "bad-name": Check("error", "file", "with a name that is not valid UTF-8", "rename the file"),
    "unreadable": Check("error", "file", "that cannot be opened", "check the file and its permissions"),
    "empty-file": Check("error", "picture", "of zero bytes", _SAVE_AGAIN),
    "not-a-picture": Check("error", "picture", "without the content of one", _SAVE_AGAIN),
    "damaged": Check("error", "picture", "damaged or cut off", _SAVE_AGAIN),
    "too-large": Check("error", "picture", "too large to decode"),
    "animated": Check("error", "picture", "with several frames"),
    "unknown-range": Check("error", "picture", "of 32 bits a pixel, in no known range"),
    "wrong-extension": Check("error", "picture", "with the extension of another format"),
    "two-captions": Check("error", "picture", "with two captions", "keep one caption for each picture"),
    "bad-caption": Check("error", "caption", "that cannot be read as text", "save the caption as UTF-8 text"),
    "bad-metadata": Check(
        "error",
        "metadata line",
        "not understood",
        'a line of metadata.jsonl reads {"file_name": "1.png", "text": "a caption"}',
    ),
    "bad-mask": Check("error", "mask", "that cannot be used", "save it again as PNG, in the size of its picture"),
    # What makes a LoRA worse, or surprises.
    "unread-kind": Check("warning", "file", "of a kind that is not read", "save them as PNG or JPEG"),
    "duplicate": Check(
        "warning",
        "picture",
        "more than once in the data set",
        "take the copies out, or use repeats, which says what is meant",
    ),
    "near-duplicate": Check(
        "warning", "picture", "much like another", "keep the best of them: the LoRA learns by heart what it sees often"
    ),
    "turned": Check(
        "warning",
        "picture",
        "stored turned, with a mark for viewers (EXIF)",
        "fluxtune turns it upright; other programs may not",
    ),
    "transparent": Check(
        "warning", "picture", "with transparent parts", "they are laid on dataset.background before training"
    ),
    "cmyk": Check("warning", "picture", "in printing colours (CMYK)", "check the colours, or save it as sRGB"),
    "sixteen-bit": Check("warning", "picture", "of 16 bits a channel", "it is trained on in 8 bits"),
    "wide-gamut": Check(
        "warning", "picture", "in a wider colour space than sRGB", "it is converted to sRGB; other programs may not"
    ),
    "blurred": Check("warning", "picture", "blurred", "the blur is learned too: use a sharper picture"),
    "borders": Check("warning", "picture", "with plain bars along its edges", "cut them off: they are learned too"),
    "blank": Check("warning", "picture", "of one brightness all over", "take it out of the folder"),
    "missing-caption": Check("warning", "picture", "without a caption", "fluxtune caption FOLDER"),
    "empty-caption": Check("warning", "caption", "without a word in it", "fluxtune caption FOLDER"),
    "stray-caption": Check("warning", "caption", "without a picture", "give both the same name, or remove it"),
    "stray-mask": Check("warning", "mask", "without a picture", "give both the same name, or remove it"),
    "useless-mask": Check("warning", "mask", "of one brightness all over", "paint what is to be learned white"),
    "shared-caption": Check(
        "warning", "picture", "with the caption of another, for their names differ in the ending alone", "rename one"
    ),
    "no-trigger": Check(
        "warning", "caption", "without the trigger word", "it is put in front of them; or write it where it belongs"
    ),
    "trigger-spelling": Check(
        "warning", "caption", "with the trigger word in another spelling", "write it the same way everywhere"
    ),
    "same-caption": Check(
        "warning", "picture", "with the very caption of another", "say in each what it shows beside the subject"
    ),
    "long-for-clip": Check(
        "warning", "caption", "longer than CLIP reads", "put what matters first; T5 reads on where CLIP stops"
    ),
    "long-for-t5": Check("warning", "caption", "longer than T5 reads", "shorten it, and put what matters first"),
    "small": Check(
        "warning",
        "picture",
        "smaller than it is trained at",
        "the blur of enlarging is learned too: use a larger picture, or lower dataset.resolution",
    ),
    "left-out": Check("warning", "picture", "left out at a resolution", "with dataset.upscale it would be enlarged"),
    "too-small": Check("warning", "picture", "too small for every resolution", "use a larger picture"),
    "cropped": Check(
        "warning", "picture", "cropped by more than a fifth", "crop it yourself, or raise dataset.max_aspect"
    ),
    "lone-bucket": Check(
        "warning", "picture", "alone in its bucket", "it makes a batch of one: crop it to the shape of the others"
    ),
    "no-counterpart": Check(
        "warning",
        "key",
        "of another trainer that has no counterpart here",
        "see docs/datasets.md",
    ),
    "few-pictures": Check("warning", "data set", "with few pictures"),
    "many-pictures": Check("warning", "data set", "with many pictures"),
    # What is good to know.
    "buckets": Check("note", "bucket", "in use"),
    "resolutions": Check("note", "size", "of pictures"),
    "named-folder": Check("note", "folder", "with repeats and a caption in its name"),
    "unread-folder": Check("note", "folder", "with folders in it that are not read"),
    "other-keys": Check("note", "key", "of another trainer that says how it works, not what is learned"),
    "epoch": Check("note", "epoch", "in steps"),
    "suggestion": Check("note", "suggestion", "for steps and repeats"),
}


def found(
    check: str,
    message: str,
    *,
    where: str | None = None,
    picture: str | None = None,
    hint: str | None = None,
    severity: Severity | None = None,
) -> Finding:
    """A finding of a check, with that check's severity and hint unless others are given."""
    known = CHECKS[check]
    return Finding(severity or known.severity, check, message, where, hint or known.hint or None, picture)


def found_special(file: Path) -> Finding:
    """The finding that a pipe, a device or a socket is, which is left out: to open it may be to wait for ever."""
    return found(
        "unread-kind",
        "this is a pipe, a device or a socket, not a file",
        where=str(file),
        hint="take it out of the folder",
    )


def found_in(error: DataError, picture: str | None = None) -> Finding:
    """The finding that an error is."""
    return found(error.check, error.message, where=error.where, picture=picture, hint=error.hint)


def found_in_description(remark: Remark) -> Finding:
    """The finding that a remark on another trainer's description is."""
    return found("no-counterpart" if remark.severity == "warning" else "other-keys", remark.message, where=remark.where)


def by_check(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Findings of the same check together: errors first, then warnings, then notes, each in the order of ``CHECKS``."""
    order = list(CHECKS)
    groups: dict[str, list[Finding]] = {}
    for each in sorted(findings, key=lambda each: (SEVERITIES.index(each.severity), order.index(each.check))):  # type: ignore[arg-type]
        groups.setdefault(each.check, []).append(each)
    return groups


def as_warnings(findings: Sequence[Finding]) -> list[Warning]:
    """The warnings among the findings, one for each check, with the first few names."""
    told = [each for each in findings if each.severity == "warning"]
    return [
        Warning(f"{CHECKS[check].count(len(group))}: {_named(group)}", hint=group[0].hint)
        for check, group in by_check(told).items()
    ]


def _named(group: list[Finding]) -> str:
    if len(group) == 1:
        return f"{name_of(group[0])}: {group[0].message}"
    return some_names(name_of(each) for each in group)


def name_of(finding: Finding) -> str:
    """What people call the thing: its name in the data set, or its path."""
    return finding.picture or finding.where or ""
