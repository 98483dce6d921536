"""The pictures to train on: what is found, in which order, and how all that is wrong is said at once."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fluxtune.config.dataset import DatasetConfig, FolderConfig
from fluxtune.dataset.folder import folder_path
from fluxtune.dataset.pictures import SHOWN, read_folders
from fluxtune.errors import DataError
from fluxtune.events import Event, Progress, Warning, ignore

ConfigFor = Callable[..., DatasetConfig]


def test_each_picture_comes_with_its_caption_size_digest_and_repeats(photo_folder: Path, config_for: ConfigFor) -> None:
    pictures = read_folders(config_for(photo_folder, repeats=3), ignore)

    assert [picture.name for picture in pictures] == [
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "rocket.png",
    ]
    cat = pictures[1]
    assert (cat.path, cat.caption, cat.repeats) == (photo_folder / "chelsea.png", "a photo of chelsea", 3)
    assert cat.size == Image.open(cat.path).size
    assert cat.digest == hashlib.sha256(cat.path.read_bytes()).hexdigest()


def test_pictures_come_in_natural_order_through_nested_folders(tmp_path: Path, config_for: ConfigFor) -> None:
    names = [
        "10.png",
        "2.PNG",
        "b/1.png",
        "b/\u00b21.png",
        "B2.png",
        "sub 10/x.jpg",
        "sub 9/x.jpeg",
        "a1b.webp",
    ]
    for name in names:
        captioned(tmp_path / name)
    pictures = read_folders(config_for(tmp_path), ignore)
    assert [picture.name for picture in pictures] == [
        "2.PNG", "10.png", "a1b.webp", "b/1.png", "b/\u00b21.png", "B2.png", "sub 9/x.jpeg", "sub 10/x.jpg",
    ]  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither pipes nor devices in folders")
def test_pipes_and_devices_are_left_out_and_told_instead_of_waited_for(tmp_path: Path) -> None:
    data, masks = tmp_path / "data", tmp_path / "masks"
    captioned(data / "dog.png")
    masks.mkdir()
    for pipe in (data / "pipe.png", data / "pipe.txt", data / "metadata.jsonl", masks / "dog.png"):
        os.mkfifo(pipe)
    (data / "device.png").symlink_to("/dev/zero")
    events: list[Event] = []
    config = DatasetConfig(folders=[FolderConfig(path=str(data), masks=str(masks))])
    assert [each.name for each in read_folders(config, events.append)] == ["dog.png"]
    [told] = [each for each in events if isinstance(each, Warning) and "kind that is not read" in each.message]
    assert told.message.startswith("5 files")


def test_hidden_files_and_other_files_are_not_pictures(tmp_path: Path, config_for: ConfigFor) -> None:
    captioned(tmp_path / "dog.png")
    for name in ("._dog.png", ".thumbnails/dog.png", "notes.md", "model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"not a picture")
    assert [picture.name for picture in read_folders(config_for(tmp_path), ignore)] == ["dog.png"]


def test_a_run_folder_among_the_pictures_is_passed_over(photo_folder: Path, config_for: ConfigFor) -> None:
    before = read_folders(config_for(photo_folder), ignore)
    run = photo_folder / "runs" / "mug"
    (run / "previews").mkdir(parents=True)
    for name in ("run.json", "config.toml"):
        (run / name).write_text("")
    Image.new("RGB", (64, 64)).save(run / "previews" / "00-seed42.png")
    assert read_folders(config_for(photo_folder), ignore) == before


def test_pictures_of_a_kind_that_is_not_read_are_named(
    tmp_path: Path, config_for: ConfigFor, events: list[Event]
) -> None:
    captioned(tmp_path / "dog.png")
    (tmp_path / "IMG_0001.HEIC").write_bytes(b"heic")
    read_folders(config_for(tmp_path), events.append)
    said = "1 file of a kind that is not read: IMG_0001.HEIC: .heic files are not read: the picture is left out"
    assert said in messages(events)


def test_folders_are_read_in_the_order_of_the_configuration(photo_folder: Path, tmp_path: Path) -> None:
    captioned(tmp_path / "more" / "dog.png")
    rows = [FolderConfig(path=str(tmp_path / "more"), repeats=2), FolderConfig(path=str(photo_folder))]
    pictures = read_folders(DatasetConfig(folders=rows), ignore)
    assert [(picture.name, picture.repeats) for picture in pictures[:2]] == [
        ("more/dog.png", 2),
        ("photos/astronaut.png", 1),
    ]


def test_folders_of_the_same_name_are_told_apart(photo_folder: Path, tmp_path: Path) -> None:
    captioned(tmp_path / "more" / "photos" / "dog.png")
    rows = [FolderConfig(path=str(path)) for path in (photo_folder, tmp_path / "more" / "photos")]
    assert read_folders(DatasetConfig(folders=rows), ignore)[-1].name == "photos-2/dog.png"


def test_names_of_every_script_work(tmp_path: Path, config_for: ConfigFor) -> None:
    names = [
        "Gr\u00fc\u00dfe \U0001f436.png",
        "\u05db\u05dc\u05d1.png",
        "\u72ac.png",
        "[red]dog.png",
        f"{'x' * 240}.png",
    ]
    for name in names:
        captioned(tmp_path / "\u00fcbung" / name, f"caption of {name}")
    pictures = read_folders(config_for(tmp_path / "\u00fcbung"), ignore)
    assert {picture.name: picture.caption for picture in pictures} == {name: f"caption of {name}" for name in names}


def test_a_caption_belongs_to_its_picture_however_the_system_writes_accents(
    tmp_path: Path, config_for: ConfigFor
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "caf\u00e9.png")
    (tmp_path / "cafe\u0301.txt").write_text("a caf\u00e9", encoding="utf-8")
    assert read_folders(config_for(tmp_path), ignore)[0].caption == "a caf\u00e9"


@pytest.mark.skipif(os.name == "nt", reason="such names exist only where names are bytes")
def test_a_name_that_is_no_text_is_refused(tmp_path: Path, config_for: ConfigFor) -> None:
    captioned(tmp_path / "dog.png")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb"):
        pass
    with pytest.raises(DataError, match="name is not valid UTF-8") as caught:
        read_folders(config_for(tmp_path), ignore)
    str(caught.value).encode()


@pytest.mark.skipif(os.name == "nt", reason="making links needs rights there")
def test_linked_folders_are_read_and_circles_end(tmp_path: Path, config_for: ConfigFor) -> None:
    captioned(tmp_path / "elsewhere" / "dog.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "circle").symlink_to(tmp_path / "data")
    pictures = read_folders(config_for(tmp_path / "data"), ignore)
    assert [picture.name for picture in pictures] == ["linked/dog.png"]


def test_the_trigger_is_in_every_caption_and_what_was_changed_is_said(
    photo_folder: Path, config_for: ConfigFor, events: list[Event]
) -> None:
    (photo_folder / "chelsea.txt").write_text("a zorvex asleep", encoding="utf-8")
    pictures = read_folders(config_for(photo_folder, trigger="zorvex"), events.append)
    assert [picture.caption for picture in pictures] == [
        "zorvex, a photo of astronaut",
        "a zorvex asleep",
        "zorvex, a photo of coffee",
        "zorvex, a photo of rocket",
    ]
    assert "3 captions without the trigger word: astronaut.png, coffee.png, rocket.png" in messages(events)


def test_pictures_without_captions_are_refused_by_name(photo_folder: Path, config_for: ConfigFor) -> None:
    (photo_folder / "chelsea.txt").unlink()
    (photo_folder / "coffee.txt").write_text("  \n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_folders(config_for(photo_folder, trigger="zorvex"), ignore)
    assert caught.value.message == "2 of 4 pictures without a caption: chelsea.png, coffee.png"
    assert caught.value.hint is not None and 'missing_captions = "caption" or "trigger"' in caught.value.hint


def test_pictures_without_captions_can_be_trained_on_the_trigger(
    photo_folder: Path, config_for: ConfigFor, events: list[Event]
) -> None:
    (photo_folder / "chelsea.txt").unlink()
    config = config_for(photo_folder, trigger="zorvex", missing_captions="trigger")
    assert read_folders(config, events.append)[1].caption == "zorvex"
    assert "1 of 4 pictures without a caption, trained on the trigger alone: chelsea.png" in messages(events)


def test_training_on_the_trigger_needs_one(photo_folder: Path, config_for: ConfigFor) -> None:
    (photo_folder / "chelsea.txt").unlink()
    with pytest.raises(DataError) as caught:
        read_folders(config_for(photo_folder, missing_captions="trigger"), ignore)
    assert caught.value.hint == "set dataset.trigger"


def test_two_captions_for_one_picture_are_refused(photo_folder: Path, config_for: ConfigFor) -> None:
    (photo_folder / "chelsea.caption").write_text("another", encoding="utf-8")
    with pytest.raises(DataError, match=r"2 captions: chelsea\.caption, chelsea\.txt"):
        read_folders(config_for(photo_folder), ignore)


def test_all_problems_of_all_folders_are_shown_at_once(photo_folder: Path, tmp_path: Path) -> None:
    (photo_folder / "coffee.txt").write_bytes(b"caf\xe9")
    (photo_folder / "rocket.png").write_bytes(b"GIF? no")
    (photo_folder / "astronaut.txt").unlink()
    (tmp_path / "empty").mkdir()
    rows = [FolderConfig(path=str(path)) for path in (photo_folder, tmp_path / "empty", tmp_path / "gone")]
    with pytest.raises(DataError) as caught:
        read_folders(DatasetConfig(folders=rows), ignore)
    assert caught.value.message.splitlines() == [
        "5 problems in the data set:",
        f"  {photo_folder / 'coffee.txt'}: the caption is not UTF-8: byte 0xe9 at position 3",
        f"  {tmp_path / 'empty'}: there are no pictures in this folder",
        f"  {tmp_path / 'gone'}: there is no such folder",
        f"  {photo_folder / 'rocket.png'}: the content is no PNG, JPEG, WebP, BMP or TIFF picture",
        "  1 of 4 pictures without a caption: photos/astronaut.png",
    ]
    assert caught.value.exit_code == 3
    assert caught.value.hint is not None and caught.value.hint.startswith("save the caption as UTF-8 text; put")


def test_a_long_list_of_problems_ends_in_a_count(tmp_path: Path, config_for: ConfigFor) -> None:
    for number in range(SHOWN + 7):
        captioned(tmp_path / f"{number}.png").write_bytes(b"damaged")
    with pytest.raises(DataError) as caught:
        read_folders(config_for(tmp_path), ignore)
    lines = caught.value.message.splitlines()
    assert len(lines) == 1 + SHOWN + 1
    assert (lines[0], lines[-1]) == (f"{SHOWN + 7} problems in the data set:", "  ... and 7 more")


def test_a_file_given_as_a_folder_is_refused(photo_folder: Path, config_for: ConfigFor) -> None:
    with pytest.raises(DataError, match="this is a file, not a folder"):
        read_folders(config_for(photo_folder / "coffee.png"), ignore)


def test_no_folder_at_all_is_refused() -> None:
    with pytest.raises(DataError, match="no folder of pictures is given"):
        read_folders(DatasetConfig(), ignore)


def test_pictures_that_are_there_twice_are_said(photo_folder: Path, config_for: ConfigFor, events: list[Event]) -> None:
    for suffix in ("png", "txt"):
        shutil.copy(photo_folder / f"coffee.{suffix}", photo_folder / f"mug.{suffix}")
    assert len(read_folders(config_for(photo_folder), events.append)) == 5
    assert "1 picture more than once in the data set: mug.png: the same file as coffee.png" in messages(events)


def test_pictures_that_share_one_caption_are_said(tmp_path: Path, config_for: ConfigFor, events: list[Event]) -> None:
    for name, seed in (("dog.png", 1), ("dog.jpg", 2), ("cat.png", 3)):
        noise(seed).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(f"an animal: {name[:3]}")
    read_folders(config_for(tmp_path), events.append)
    (warning,) = [event for event in events if isinstance(event, Warning)]
    assert "1 picture with the caption of another" in warning.message
    assert "dog.png: dog.jpg has the same caption, dog.txt" in warning.message


def test_reading_reports_each_picture(photo_folder: Path, config_for: ConfigFor, events: list[Event]) -> None:
    read_folders(config_for(photo_folder), events.append)
    progress = [event for event in events if isinstance(event, Progress)]
    assert [(event.done, event.total, event.unit) for event in progress] == [(n, 4, "pictures") for n in (1, 2, 3, 4)]


def test_a_data_set_that_may_not_be_written_is_read_and_left_as_it_was(
    photo_folder: Path, config_for: ConfigFor
) -> None:
    def state() -> list[tuple[str, int, int]]:
        return [(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in sorted(photo_folder.iterdir())]

    for file in photo_folder.iterdir():
        file.chmod(0o444)
    photo_folder.chmod(0o555)
    try:
        before = state()
        assert len(read_folders(config_for(photo_folder, trigger="zorvex"), ignore)) == 4
        assert state() == before
    finally:
        photo_folder.chmod(0o755)


def test_the_demo_and_the_home_folder_have_short_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fluxtune.nano import demo_folder

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert folder_path("nano:demo") == demo_folder()
    assert folder_path("~/photos") == tmp_path / "photos"


def test_errors_can_be_accepted_and_what_cannot_be_read_is_left_out(
    photo_folder: Path, config_for: ConfigFor, events: list[Event]
) -> None:
    (photo_folder / "rocket.png").write_bytes(b"damaged")
    (photo_folder / "coffee.png").rename(photo_folder / "coffee.jpg")
    with pytest.raises(DataError, match="2 problems") as caught:
        read_folders(config_for(photo_folder), ignore)
    assert caught.value.hint is not None and caught.value.hint.endswith("--accept data goes on with what can be read")
    pictures = read_folders(config_for(photo_folder), events.append, accept_errors=True)
    assert [picture.name for picture in pictures] == ["astronaut.png", "chelsea.png", "coffee.jpg"]
    said = "3 of 4 pictures are trained on, in spite of what is wrong with coffee.jpg, rocket.png"
    assert said in messages(events)


def test_a_data_set_of_which_nothing_is_left_cannot_be_accepted(tmp_path: Path, config_for: ConfigFor) -> None:
    captioned(tmp_path / "a.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match="the content is no PNG") as caught:
        read_folders(config_for(tmp_path), ignore, accept_errors=True)
    assert caught.value.hint is not None and "--accept" not in caught.value.hint


def test_a_folder_that_is_not_there_cannot_be_accepted(photo_folder: Path, tmp_path: Path) -> None:
    rows = [FolderConfig(path=str(path)) for path in (photo_folder, tmp_path / "gone")]
    with pytest.raises(DataError, match="there is no such folder"):
        read_folders(DatasetConfig(folders=rows), ignore, accept_errors=True)


def captioned(path: Path, caption: str = "a dog") -> Path:
    """A small picture with a caption beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path)
    path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def noise(seed: int) -> Image.Image:
    """A picture that is like no other."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8))


def messages(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Warning)]
