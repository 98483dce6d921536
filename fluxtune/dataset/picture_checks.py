"""What is wrong, or surprising, with single pictures: findings from how they are stored and what was measured."""

from __future__ import annotations

from collections.abc import Iterator

from fluxtune.dataset.findings import found, found_in
from fluxtune.dataset.folder import Item
from fluxtune.dataset.survey import Look, Survey
from fluxtune.events import Finding

EXTENSIONS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "MPO": (".jpg", ".jpeg"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
}
"""What a file of each format may be called."""

BLURRED = 0.125
"""Sharpness below this is a blur that one sees at the training size."""
BAR = 0.02
"""Plain bars that take less of a side than this are not worth a word."""

_TURNS = {2: "mirrored", 3: "upside down", 4: "upside down and mirrored", 5: "on its side and mirrored"}
_TURNS |= {6: "on its side", 7: "on its side and mirrored", 8: "on its side"}


def check_pictures(survey: Survey) -> Iterator[Finding]:
    """Findings of each picture alone, in the order of the pictures."""
    for seen in survey.seen:
        if seen.error is not None:
            yield found_in(seen.error, seen.item.name)
        if seen.mask_error is not None:
            error = seen.mask_error
            yield found("bad-mask", error.message, where=error.where, picture=seen.item.name, hint=error.hint)
        if seen.mask_remark:
            yield found("useless-mask", seen.mask_remark, where=str(seen.item.mask), picture=seen.item.name)
        if seen.look is not None:
            yield from _check_one(seen.item, seen.look)


def _check_one(item: Item, look: Look) -> Iterator[Finding]:
    def one(check: str, message: str, hint: str | None = None) -> Finding:
        return found(check, message, where=str(item.path), picture=item.name, hint=hint)

    stored = look.stored
    suffixes = EXTENSIONS[stored.format]
    if item.path.suffix.lower() not in suffixes:
        message = f"the content is {stored.format}, but the name ends in {item.path.suffix}"
        yield one("wrong-extension", message, f"rename it to {item.path.stem}{suffixes[0]}")
    if stored.turn != 1:
        yield one("turned", f"stored {_TURNS[stored.turn]} (EXIF orientation {stored.turn})")
    if stored.transparent:
        yield one("transparent", "parts of it are transparent")
    if stored.colours == "CMYK":
        yield one("cmyk", "its colours are those of print (CMYK)")
    if stored.bits == 16:
        yield one("sixteen-bit", "it has 16 bits a channel")
    if stored.profile is not None:
        yield one("wide-gamut", f"its colour profile is {stored.profile}")
    if look.blank:
        yield one("blank", "all of it has one brightness")
    if look.sharpness is not None and look.sharpness < BLURRED:
        yield one("blurred", f"blurred: sharpness {look.sharpness:.2f} where {BLURRED} is wanted")
    if max(look.borders) >= BAR:
        sides = zip(("left", "top", "right", "bottom"), look.borders, strict=True)
        bars = ", ".join(f"{side} {share:.0%}" for side, share in sides if share >= BAR)
        yield one("borders", f"plain bars: {bars} of the picture")
