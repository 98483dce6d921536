"""`fluxtune export dataset`: what people read, what programs read, and the exit codes."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import skimage.data
from interruption import interrupted_here
from PIL import Image

Fluxtune = Callable[..., Any]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two pictures, one with a mask and one in a folder of its own."""
    folder = tmp_path / "photos"
    (folder / "night").mkdir(parents=True)
    picture = Image.fromarray(skimage.data.coffee())
    picture.crop((0, 0, 200, 200)).save(folder / "a.png")
    picture.crop((200, 100, 400, 300)).save(folder / "night" / "b.png")
    for name in ("a", "night/b"):
        (folder / f"{name}.txt").write_text("a zorvex in a cup")
    Image.new("L", (200, 200), 200).save(folder / "a-masklabel.png")
    return folder


def test_it_says_what_was_made_and_what_the_layout_cannot_hold(fluxtune: Fluxtune, photos: Path) -> None:
    outcome = fluxtune("export", "dataset", "photos", "--trigger", "zorvex", "-f", "kohya", "-o", "copy")
    assert outcome.code == 0
    assert outcome.out == (
        "copy: 2 pictures, 2 captions, 1 masks, laid out for kohya\n"
        f"  photos/ from {photos}\n"
        f"  photos-night/ from {photos / 'night'}\n"
        "  kohya cannot hold dataset.trigger, dataset.unmasked_weight: kept in copy/dataset_config.fluxtune.toml\n"
        "  kohya's trainers look at the masks with --masked_loss alone\n"
        "copy/dataset_config.toml describes it\n"
    )


def test_for_programs_the_last_line_is_the_result(fluxtune: Fluxtune, photos: Path) -> None:
    records = fluxtune("export", "dataset", "photos", "-f", "ai-toolkit", "-o", "copy", "--json").records()
    assert {"read pictures", "write pictures"} <= {record.get("task") for record in records}
    assert (records[-1]["event"], records[-1]["command"]) == ("result", "export dataset")
    assert records[-1]["data"]["description"] == "copy/ai-toolkit.yaml"
    assert records[-1]["data"]["directories"] == {"photos": str(photos), "photos-night": str(photos / "night")}


def test_an_export_can_be_exported_again(fluxtune: Fluxtune, photos: Path) -> None:
    fluxtune("export", "dataset", "photos", "--trigger", "zorvex", "-f", "simpletuner", "-o", "one")
    outcome = fluxtune("export", "dataset", "one/multidatabackend.json", "-f", "folder", "-o", "two", "--link")
    assert outcome.out.startswith("two: 2 pictures (2 of them links), 2 captions, 1 masks, laid out for folder\n")
    assert 'trigger = "zorvex"' in (photos.parent / "two" / "dataset.toml").read_text()


def test_errors_in_the_data_refuse_it(fluxtune: Fluxtune, photos: Path) -> None:
    shutil.copy(photos / "a.txt", photos / "a.caption")
    outcome = fluxtune("export", "dataset", "photos", "-f", "folder", "-o", "copy")
    assert (outcome.code, outcome.out) == (3, "")
    assert "the picture has 2 captions" in outcome.err
    outcome = fluxtune("export", "dataset", "photos", "-f", "folder", "-o", "copy", "--accept", "data")
    assert outcome.code == 0
    assert "  left out: a.png\n" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("photos", "-o", "copy"), "--format is not given"),
        (("photos", "-f", "kohya"), "--output is not given"),
        (("photos", "-f", "koyha", "-o", "copy"), "invalid value for '--format'"),
        (("-f", "kohya", "-o", "copy"), "no folder of pictures is given"),
        (("photos", "-f", "kohya", "-o", "photos/copy"), "the export would lie within the data set"),
    ],
)
def test_wrong_usage_is_said_with_exit_code_2(
    fluxtune: Fluxtune, photos: Path, arguments: tuple[str, ...], message: str
) -> None:
    outcome = fluxtune("export", "dataset", *arguments)
    assert outcome.code == 2
    assert message in outcome.err


def test_without_a_subcommand_it_shows_its_help(fluxtune: Fluxtune) -> None:
    outcome = fluxtune("export")
    assert outcome.code == 2
    assert "Hand over to other programs" in outcome.out
    assert "dataset" in outcome.out


def test_names_with_control_characters_are_shown_harmless(fluxtune: Fluxtune, photos: Path) -> None:
    (photos / "night").rename(photos / "\x1b[2Jnight")
    outcome = fluxtune("export", "dataset", "photos", "-f", "folder", "-o", "copy")
    assert outcome.code == 0
    assert "\x1b" not in outcome.out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_export_that_is_interrupted_leaves_nothing_behind(tmp_path: Path, number: signal.Signals, code: int) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(100):
        Image.effect_noise((64, 64), 50).save(tmp_path / "photos" / f"{index}.png")
    arguments = ["export", "dataset", "photos", "--format", "kohya", "--output", "copy", "--json"]
    returned, _ = interrupted_here(arguments, tmp_path, lambda event: event["event"] == "progress", number)
    assert returned == code
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_what_does_not_concern_pictures_cannot_be_accepted(fluxtune: Fluxtune, photos: Path) -> None:
    outcome = fluxtune("export", "dataset", "photos", "-f", "folder", "-o", "copy", "--accept", "memory")
    assert outcome.code == 2
    assert "memory" in outcome.err
