"""Damaged on purpose: pictures and captions with bytes changed, cut, doubled and swapped at random, by a seed."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from zoo import encoded, photograph, png

from fluxtune.config.dataset import FolderConfig
from fluxtune.config.schema import Config
from fluxtune.dataset.caption_checks import ESTIMATES
from fluxtune.dataset.findings import CHECKS
from fluxtune.dataset.validation import Report, validate
from fluxtune.events import ignore

SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif", "GIF": ".png"}


@pytest.mark.parametrize(
    ("pictures", "captions"), [(120, 60), pytest.param(2000, 500, marks=pytest.mark.slow)], ids=["share", "all"]
)
def test_whatever_is_done_to_its_bytes_every_file_is_accounted_for(
    tmp_path: Path, pictures: int, captions: int
) -> None:
    names = mutated_pictures(tmp_path / "pictures", pictures) + mutated_captions(tmp_path / "captions", captions)
    report = report_of(tmp_path)
    seen = [seen.item.name for seen in report.survey.seen]
    assert sorted(seen) == sorted(names)
    refused = {each.picture for each in report.findings if each.severity == "error"}
    usable = {picture.name for picture in report.pictures}
    # Each is read, or told why not; those whose caption is no text are both.
    assert usable | refused == set(names)
    assert {each.check for each in report.findings} <= set(CHECKS)
    assert all(each.message and "Traceback" not in each.message for each in report.findings)
    # The mutations are neither all harmless nor all deadly: the run tries both ways.
    assert 0.1 < len(usable) / len(names) < 0.95
    assert Counter(each.check for each in report.findings)["bad-caption"] > captions / 20


def mutated_pictures(folder: Path, number: int) -> list[str]:
    """Small pictures of every format, each damaged in its own way."""
    folder.mkdir()
    draw = random.Random("mutated pictures")
    whole = {kind: encoded(photograph().resize((96, 64)), kind) for kind in SUFFIXES}
    whole["BOMB"] = png(30_000, 30_000, b"")
    names = []
    for index in range(number):
        kind = draw.choice(list(whole))
        name = f"{index:04d}{SUFFIXES.get(kind, '.png')}"
        (folder / name).write_bytes(mutated(whole[kind], draw))
        (folder / name).with_suffix(".txt").write_text(f"picture {index}")
        names.append(f"pictures/{name}")
    return names


def mutated_captions(folder: Path, number: int) -> list[str]:
    """Whole pictures whose captions are damaged."""
    folder.mkdir()
    draw = random.Random("mutated captions")
    picture = encoded(photograph().resize((96, 64)), "PNG")
    texts = ["a zorvex [red]on[/red] a table", "un café à côté d'une fenêtre", "猫が窓のそばで寝ている", "🙂 " * 20, ""]
    names = []
    for index in range(number):
        name = f"{index:04d}.png"
        # Not the same file each time: what is after the end of a PNG is no part of the picture.
        (folder / name).write_bytes(picture + str(index).encode())
        text = draw.choice(texts).encode(draw.choice(("utf-8", "utf-8-sig", "utf-16", "utf-8")))
        (folder / f"{index:04d}.txt").write_bytes(mutated(text, draw))
        names.append(f"captions/{name}")
    return names


def mutated(content: bytes, draw: random.Random) -> bytes:
    """One to four changes: bytes replaced, cut off, taken out, doubled, moved, or runs of zeros."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(data) + 1)
        length = draw.choice((1, 1, 2, 8, 64, 1024))
        match draw.randrange(6):
            case 0:
                data[start : start + length] = draw.randbytes(min(length, max(0, len(data) - start)))
            case 1:
                del data[start + draw.randrange(0, 3) * length :]
            case 2:
                del data[start : start + length]
            case 3:
                data[start:start] = data[start : start + length]
            case 4:
                data[start : start + length] = bytes(len(data[start : start + length]))
            case _:
                for place in range(start, min(len(data), start + length)):
                    data[place] ^= 1 << draw.randrange(8)
    return bytes(data)


def report_of(folder: Path) -> Report:
    config = Config.model_validate({"dataset": {"folders": [FolderConfig(path=str(folder))], "resolution": [64]}})
    return validate(config, ESTIMATES, 16, ignore)
