"""The repaired copy: what becomes of each picture and caption, and that nothing else is touched."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import ExifTags, Image
from test_zoo import report_of
from zoo import ZOO, photograph, twins

from fluxtune.dataset import mending
from fluxtune.dataset.mending import Mend, mend, safe_name
from fluxtune.errors import StorageError, UsageError
from fluxtune.events import ignore


def mended(folder: Path) -> tuple[Path, list[Mend]]:
    """The copy, beside the folder."""
    copy = folder.parent / "copy"
    return copy, mend(report_of(folder), copy, ignore)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


REPAIRED = [
    "JPEG called PNG", "PNG called JPEG", "CMYK", "16-bit grey PNG", "16-bit colour PNG", "wide gamut",
    "EXIF orientation 3", "EXIF orientation 6", "turned TIFF", "one picture twice", "two captions", "caption in UTF-16",
    "caption in UTF-16 without its mark", "caption with NUL", "caption in Latin-1",
]  # fmt: skip


@pytest.mark.parametrize("animal", REPAIRED)
def test_what_can_be_repaired_is_right_in_the_copy(photos: Path, animal: str) -> None:
    make, wanted = ZOO[animal]
    make(photos)
    copy, mends = mended(photos)
    assert mends
    found = {each.check for each in report_of(copy).findings if each.severity != "note"}
    assert not found & wanted


def test_a_turned_picture_comes_out_upright_with_the_same_pixels(photos: Path) -> None:
    ZOO["EXIF orientation 8"][0](photos)
    copy, mends = mended(photos)
    assert [(Path(each.source).name, each.target, each.done) for each in mends] == [
        ("a.jpg", "a.png", ("turned upright",))
    ]
    upright = Image.open(copy / "a.png")
    assert upright.size == photograph().size
    assert upright.getexif().get(ExifTags.Base.Orientation) is None


def test_what_needs_nothing_is_copied_to_the_byte(photos: Path) -> None:
    photograph().save(photos / "a.jpg")
    (photos / "a.txt").write_bytes(b"a zorvex\n")
    copy, mends = mended(photos)
    assert mends == []
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == {
        path.name: path.read_bytes() for path in photos.iterdir()
    }


def test_transparency_is_kept_when_a_picture_is_converted(photos: Path) -> None:
    picture = photograph()
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    picture.save(photos / "a.png", exif=exif)
    copy, _ = mended(photos)
    assert Image.open(copy / "a.png").getchannel("A").getextrema() == (0, 255)


def test_names_at_the_systems_limit_are_set_aside_too(photos: Path) -> None:
    (photos / f"{'x' * 246}.png").write_bytes(b"damaged")
    photograph().save(photos / "a.png")
    _, (mend,) = mended(photos)
    assert mend.target == f".set-aside/unreadable/{'x' * 100}.png"


def test_masks_come_along_under_the_name_of_their_picture(photos: Path) -> None:
    ZOO["EXIF orientation 6"][0](photos)
    mask = Image.linear_gradient("L").resize(photograph().size)
    mask.save(photos / "a-masklabel.png")
    copy, _ = mended(photos)
    assert Image.open(copy / "a-masklabel.png").tobytes() == mask.tobytes()
    assert [seen.item.mask for seen in report_of(copy).survey.seen] == [copy / "a-masklabel.png"]


def test_a_picture_with_a_damaged_mask_is_set_aside_with_it(photos: Path) -> None:
    photograph().save(photos / "a.png")
    (photos / "a-masklabel.png").write_bytes(b"damaged")
    copy, _ = mended(photos)
    aside = copy / ".set-aside" / "unreadable"
    assert sorted(path.name for path in aside.iterdir()) == ["a-masklabel.png", "a.png"]


def test_of_two_captions_the_one_with_words_is_taken_and_the_other_set_aside(photos: Path) -> None:
    photograph().save(photos / "a.png")
    (photos / "a.caption").write_text("")
    (photos / "a.txt").write_text("my caption")
    copy, (done,) = mended(photos)
    assert (copy / "a.txt").read_text() == "my caption\n"
    assert (copy / ".set-aside" / "captions" / "a.caption").exists()
    assert done.done == ("a.txt taken, a.caption set aside",)


def test_files_that_are_no_part_of_the_copy_are_listed(photos: Path) -> None:
    photograph().save(photos / "a.png")
    (photos / "b.heic").write_bytes(b"heic")
    (photos / "c.txt").write_text("a stray caption")
    _, mends = mended(photos)
    assert [(Path(each.source).name, each.target) for each in mends] == [("b.heic", ""), ("c.txt", "")]


def test_a_caption_that_cannot_be_read_is_left_out_and_told(photos: Path) -> None:
    photograph().save(photos / "a.png")
    (photos / "a.txt").symlink_to("/nowhere/at/all")
    copy, (done,) = mended(photos)
    assert done.done[0].startswith("caption left out: ")
    assert (copy / "a.png").exists()


def test_an_empty_destination_that_is_a_link_is_filled(photos: Path, tmp_path: Path) -> None:
    photograph().save(photos / "a.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "copy").symlink_to(tmp_path / "elsewhere")
    mended(photos)
    assert (tmp_path / "elsewhere" / "a.png").exists()


def test_the_original_is_left_as_it_was(photos: Path) -> None:
    for animal in ("EXIF orientation 6", "turned TIFF", "one picture twice", "caption in Latin-1"):
        ZOO[animal][0](photos)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in photos.iterdir()}
    mended(photos)
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in photos.iterdir()} == before


def test_copies_and_damaged_pictures_are_set_aside_with_their_captions(photos: Path) -> None:
    twins(photos)
    (photos / "b.txt").write_text("a copy")
    (photos / "c.png").write_bytes(b"damaged")
    copy, mends = mended(photos)
    assert [each.target for each in mends] == [".set-aside/duplicates/b.png", ".set-aside/unreadable/c.png"]
    assert (copy / ".set-aside/duplicates/b.txt").read_text() == "a copy"
    assert [path.name for path in copy.iterdir() if path.is_file()] == ["a.png"]


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("dog 1", "dog 1"),
        ("Übung_é", "Übung_é"),
        ("cafe\u0301", "café"),
        ("قهوة", "قهوة"),
        ("☕🙂 cup", "cup"),
        ("a:b*c?", "a-b-c"),
        ("..hidden.", "hidden"),
        ("CON", "CON-"),
        ("🙂", "picture"),
        ("x" * 250, "x" * 100),
        ("漢" * 82, "漢" * 33),
        ("a\x1b[2J\u202eb", "a--2J-b"),
    ],
)
def test_names_are_made_safe_for_every_system(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_names_that_become_the_same_are_told_apart(photos: Path) -> None:
    for number, name in enumerate(("a:1.png", "a?1.png", "A-1.png")):
        photograph().rotate(number * 90).save(photos / name)
        (photos / name).with_suffix(".txt").write_text(f"turned {number} times")
    copy, _ = mended(photos)
    assert sorted((path.name.casefold() for path in copy.glob("*.png")), key=lambda name: (len(name), name)) == [
        "a-1.png",
        "a-1-2.png",
        "a-1-3.png",
    ]
    for path in copy.glob("*.png"):
        assert path.with_suffix(".txt").exists()


@pytest.mark.parametrize("place", ["photos", "photos/copy"])
def test_a_copy_within_the_data_set_is_refused(photos: Path, place: str) -> None:
    photograph().save(photos / "a.png")
    with pytest.raises(UsageError):
        mend(report_of(photos), photos.parent / place, ignore)


def test_a_full_disk_leaves_nothing_behind(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    photograph().save(photos / "a.png")
    report = report_of(photos)
    monkeypatch.setattr(mending, "_copy", full)
    with pytest.raises(StorageError, match="no space left"):
        mend(report, photos.parent / "copy", ignore)
    assert [path.name for path in photos.parent.iterdir()] == ["photos"]


def test_several_folders_stay_apart_in_the_copy(photos: Path, tmp_path: Path, several: Callable[..., object]) -> None:
    photograph().save(photos / "a.png")
    (tmp_path / "more" / "photos").mkdir(parents=True)
    photograph().rotate(90).save(tmp_path / "more" / "photos" / "a.png")
    mend(several(photos, tmp_path / "more" / "photos"), tmp_path / "copy", ignore)  # type: ignore[arg-type]
    assert sorted(path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*.png")) == [
        "photos-2/a.png",
        "photos/a.png",
    ]


@pytest.fixture
def several() -> Callable[..., object]:
    from fluxtune.config.dataset import FolderConfig
    from fluxtune.config.schema import Config
    from fluxtune.dataset.caption_checks import ESTIMATES
    from fluxtune.dataset.validation import validate

    def report(*folders: Path) -> object:
        rows = [FolderConfig(path=str(folder)) for folder in folders]
        config = Config.model_validate({"dataset": {"folders": rows, "resolution": [512]}})
        return validate(config, ESTIMATES, 16, ignore)

    return report


def test_a_folder_whose_name_says_something_keeps_it_in_the_copy(tmp_path: Path) -> None:
    folder = tmp_path / "10_zorvex dog"
    folder.mkdir()
    photograph().save(folder / "a.png")
    mend(report_of(folder), tmp_path / "copy", ignore)
    (seen,) = report_of(tmp_path / "copy").survey.seen
    assert (seen.item.name, seen.item.repeats) == ("10_zorvex dog/a.png", 10)


def test_settings_of_the_data_set_itself_come_along(photos: Path) -> None:
    photograph().save(photos / "a.png")
    copy = photos.parent / "copy"
    (done,) = mend(report_of(photos), copy, ignore, {"trigger": "zorvex"})
    assert (done.target, done.done) == ("dataset.toml", ("written: settings of the data set and its folders",))
    assert (copy / "dataset.toml").read_text() == '[dataset]\ntrigger = "zorvex"\n\n[[dataset.folders]]\npath = "."\n'


def test_folders_that_get_the_same_safe_name_stay_apart(tmp_path: Path, several: Callable[..., object]) -> None:
    for number, name in enumerate(("a:b", "a?b")):
        (tmp_path / name).mkdir()
        photograph().rotate(90 * number).save(tmp_path / name / "a.png")
    mend(several(tmp_path / "a:b", tmp_path / "a?b"), tmp_path / "copy", ignore)  # type: ignore[arg-type]
    assert sorted(path.parent.name for path in (tmp_path / "copy").rglob("*.png")) == ["a-b", "a-b-2"]
