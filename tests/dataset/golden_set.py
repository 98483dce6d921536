"""Data sets with known problems, made of real photographs: what each check should find in them, and what it finds.

``python tests/dataset/golden_set.py`` prints the table of docs/validate.md.
"""

from __future__ import annotations

import io
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import skimage.data
from PIL import ExifTags, Image, ImageEnhance, ImageFilter, ImageOps

from fluxtune.config.dataset import FolderConfig
from fluxtune.config.schema import Config
from fluxtune.dataset.caption_checks import ESTIMATES
from fluxtune.dataset.validation import validate
from fluxtune.events import ignore

SIDE = 256
PHOTOGRAPHS = {
    "astronaut": 4, "camera": 4, "brick": 4, "grass": 4, "gravel": 4, "immunohistochemistry": 4, "moon": 4,
    "retina": 9, "hubble_deep_field": 9, "coffee": 2, "rocket": 2, "chelsea": 1, "coins": 1,
}  # fmt: skip
"""Of scikit-image, and how many tiles of 256 x 256 pixels are cut from the middle of each, none over another."""

Change = Callable[[Image.Image], Image.Image]


@dataclass
class Golden:
    """A folder, and the names of the pictures in which each check is owed a finding."""

    folder: Path
    owed: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


@dataclass(frozen=True)
class Score:
    """How often a check was right: findings that are true, that are false, and problems that were missed."""

    true: int
    false: int
    missed: int

    @property
    def precision(self) -> float:
        return self.true / max(1, self.true + self.false)

    @property
    def recall(self) -> float:
        return self.true / max(1, self.true + self.missed)


@cache
def tiles() -> list[Image.Image]:
    """Parts of real photographs that have nothing to do with each other, but for those of one texture."""
    return [tile for name, number in PHOTOGRAPHS.items() for tile in _tiles_of(name, number)]


def _tiles_of(name: str, number: int) -> Iterator[Image.Image]:
    picture = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    columns, rows = {9: (3, 3), 4: (2, 2), 2: (2, 1), 1: (1, 1)}[number]
    left, top = (picture.width - columns * SIDE) // 2, (picture.height - rows * SIDE) // 2
    for row in range(rows):
        for column in range(columns):
            x, y = left + column * SIDE, top + row * SIDE
            yield picture.crop((x, y, x + SIDE, y + SIDE))


def blur(radius: float) -> Change:
    return lambda picture: picture.filter(ImageFilter.GaussianBlur(radius))


def enlarged(picture: Image.Image) -> Image.Image:
    """Blurred by having been a quarter of its size once."""
    return picture.resize((SIDE // 4, SIDE // 4), Image.Resampling.LANCZOS).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )


def bars(across: bool, colour: str, share: float) -> Change:
    """Letterbox (or pillar) bars that take a share of the side, half of it at either end."""

    def change(picture: Image.Image) -> Image.Image:
        bar = round(SIDE * share / 2)
        border = (bar, 0) if across else (0, bar)
        return ImageOps.expand(picture, border, colour).resize((SIDE, SIDE))

    return change


def frame(colour: str) -> Change:
    return lambda picture: ImageOps.expand(picture, 12, colour)


def recompressed(quality: int) -> Change:
    def change(picture: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer)

    return change


def cropped(share: float) -> Change:
    margin = round(SIDE * share / 2)
    return lambda picture: picture.crop((margin, margin, SIDE - margin, SIDE - margin))


CHANGES: dict[str, dict[str, Change]] = {
    "blurred": {"blur 1.5": blur(1.5), "blur 2": blur(2), "blur 3": blur(3), "enlarged four times": enlarged},
    "borders": {
        "letterbox": bars(False, "black", 0.2),
        "pillars": bars(True, "#202020", 0.1),
        "white frame": frame("white"),
    },
    "near-duplicate": {
        "JPEG 30": recompressed(30),
        "half its size": lambda picture: picture.resize((SIDE // 2, SIDE // 2)),
        "blur 0.7": blur(0.7),
        "a quarter brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.25),
        "contrast raised by a third": lambda picture: ImageEnhance.Contrast(picture).enhance(1.33),
        "3 % cropped": cropped(0.03),
        "10 % cropped": cropped(0.1),
        "20 % cropped": cropped(0.2),
        "15 % cut off at the right": lambda picture: picture.crop((0, 0, round(SIDE * 0.85), SIDE)),
        "3:4 cut from the middle": lambda picture: picture.crop((SIDE // 8, 0, SIDE - SIDE // 8, SIDE)),
    },
}
"""Check -> changes of a picture that it should find (for duplicates: in a copy beside the picture)."""

SMALL = ("half its size", "10 % cropped", "20 % cropped", "15 % cut off at the right", "3:4 cut from the middle")
"""Changes after which a picture is noticeably smaller than it is trained at, too."""


def golden_sets(root: Path) -> Iterator[tuple[str, Golden]]:
    """(what was done, data set) for all of them."""
    for check, changes in CHANGES.items():
        for name, change in changes.items():
            # Each tile is clean in one half of the data sets and changed in the other.
            for half in (0, 1):
                golden = Golden(root / f"{check} {name} {half}".replace(" ", "-").replace("%", ""))
                golden.folder.mkdir(parents=True)
                for index, tile in enumerate(tiles()):
                    if check == "near-duplicate":
                        _save_clean(golden, index)
                    if index % 2 == half:
                        owed = _save(golden, change(tile), index, "_copy" if check == "near-duplicate" else "")
                        golden.owed[check].add(owed)
                        if name in SMALL:
                            golden.owed["small"].add(owed)
                    elif check != "near-duplicate":
                        _save_clean(golden, index)
                yield name, golden
    yield "stored otherwise", _stored_otherwise(root / "stored")
    yield "captions and copies", _captions(root / "captions")


def _save(golden: Golden, picture: Image.Image, index: int, mark: str, suffix: str = ".png", **options: object) -> str:
    name = f"{index:03d}{mark}{suffix}"
    quick = {"compress_level": 1} if suffix == ".png" else {}
    picture.save(golden.folder / name, **quick, **options)  # type: ignore[arg-type]
    (golden.folder / name).with_suffix(".txt").write_text(f"a zorvex, tile {index}{mark}", encoding="utf-8")
    return name


def _save_clean(golden: Golden, index: int) -> None:
    """A tile as it is; it is encoded once for all data sets, which takes longer than everything else here."""
    (golden.folder / f"{index:03d}.png").write_bytes(_encoded(index))
    (golden.folder / f"{index:03d}.txt").write_text(f"a zorvex, tile {index}", encoding="utf-8")


@cache
def _encoded(index: int) -> bytes:
    buffer = io.BytesIO()
    tiles()[index].save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _stored_otherwise(folder: Path) -> Golden:
    """Turned, transparent, in print colours, of 16 bits, small, long, misnamed: each seventh tile in turn."""
    golden = Golden(folder)
    folder.mkdir(parents=True)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    for index, tile in enumerate(tiles()):
        match index % 8:
            case 0:
                golden.owed["turned"].add(_save(golden, tile, index, "", ".jpg", exif=turned, quality=95))
            case 1:
                clear = tile.copy()
                clear.putalpha(Image.linear_gradient("L"))
                golden.owed["transparent"].add(_save(golden, clear, index, ""))
            case 2:
                golden.owed["cmyk"].add(_save(golden, tile.convert("CMYK"), index, "", ".tif"))
            case 3:
                deep = Image.fromarray(np.asarray(tile.convert("L"), dtype=np.uint16) * 257)
                golden.owed["sixteen-bit"].add(_save(golden, deep, index, ""))
            case 4:
                golden.owed["small"].add(_save(golden, tile.crop((0, 0, 180, 180)), index, ""))
            case 5:
                wide = ImageOps.fit(tile, (768, 256))
                golden.owed["cropped"].add(_save(golden, wide, index, ""))
                golden.owed["blurred"].add(f"{index:03d}.png")
            case 6:
                name = _save(golden, tile, index, "")
                (folder / name).rename(folder / f"{index:03d}.webp")
                golden.owed["wrong-extension"].add(f"{index:03d}.webp")
            case _:
                _save(golden, tile, index, "")
    return golden


def _captions(folder: Path) -> Golden:
    """Captions missing, empty, in another encoding, without the trigger, of another picture; whole copies."""
    golden = Golden(folder)
    folder.mkdir(parents=True)
    for index, tile in enumerate(tiles()):
        name = _save(golden, tile, index, "")
        caption = (folder / name).with_suffix(".txt")
        match index % 8:
            case 0:
                caption.unlink()
                golden.owed["missing-caption"].add(name)
            case 1:
                caption.write_text(" \n")
                golden.owed["empty-caption"].add(name)
            case 2:
                caption.write_bytes(f"a zorvex, tile {index}".encode("utf-16"))
                golden.owed["bad-caption"].add(name)
            case 3:
                caption.write_text(f"tile {index}")
                golden.owed["no-trigger"].add(name)
            case 4:
                caption.write_text(f"a Zorvex, tile {index}")
                golden.owed["trigger-spelling"].add(name)
            case 5:
                caption.write_text("a zorvex")
                golden.owed["same-caption"].update([name] if index > 5 else [])
            case 6:
                _save(golden, tile, index, "_copy")
                golden.owed["duplicate"].add(f"{index:03d}_copy.png")
            case _:
                caption.write_text(f"a zorvex, tile {index}, " + "with a very long tail of words, " * 15)
                golden.owed["long-for-clip"].add(name)
    return golden


def scores(root: Path) -> tuple[dict[str, Score], dict[str, float]]:
    """The score of each check over all data sets, and the recall of each kind of change."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    found_of: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for change, golden in golden_sets(root):
        found = found_in(golden.folder)
        for check in {*golden.owed, *CHANGES, *found}:
            owed, seen = golden.owed[check], found.get(check, set())
            for place, names in enumerate((seen & owed, seen - owed, owed - seen)):
                counts[check][place] += len(names)
            if check in CHANGES and change in CHANGES[check]:
                found_of[f"{check}: {change}"][0] += len(seen & owed)
                found_of[f"{check}: {change}"][1] += len(owed)
    return (
        {check: Score(*count) for check, count in counts.items()},
        {change: seen / owed for change, (seen, owed) in found_of.items()},
    )


def found_in(folder: Path) -> dict[str, set[str]]:
    """Check -> names of the pictures with an error or warning of it."""
    settings = {"folders": [FolderConfig(path=str(folder))], "resolution": [SIDE], "trigger": "zorvex"}
    config = Config.model_validate({"dataset": settings})
    found: dict[str, set[str]] = defaultdict(set)
    for each in validate(config, ESTIMATES, 16, ignore).findings:
        if each.severity != "note" and each.picture:
            found[each.check].add(each.picture)
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        of_checks, of_changes = scores(Path(folder))
    print("| check | true | false | missed | precision | recall |\n| --- | --- | --- | --- | --- | --- |")
    for check, score in sorted(of_checks.items()):
        figures = f"{score.true} | {score.false} | {score.missed} | {score.precision:.3f} | {score.recall:.3f}"
        print(f"| `{check}` | {figures} |")
    print("\n| change | found |\n| --- | --- |")
    for change, recall in of_changes.items():
        print(f"| {change} | {recall:.0%} |")
