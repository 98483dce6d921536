"""Captions in metadata files and repeats in folder names: what other tools' data sets say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from zoo import photograph

from fluxtune.config.dataset import FolderConfig
from fluxtune.dataset.folder import Item, list_folders
from fluxtune.dataset.layouts import KohyaFolder, kohya_folder
from fluxtune.events import Finding


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


def listed(folder: Path, repeats: int = 1) -> tuple[dict[str, Item], list[Finding]]:
    listing = list_folders([FolderConfig(path=str(folder), repeats=repeats)])
    return {item.name: item for item in listing.items}, list(listing.findings)


def lines(path: Path, *rows: object) -> None:
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
def test_captions_come_from_metadata_jsonl(tmp_path: Path, column: str) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "sub" / "caf\u00e9.png")
    lines(
        tmp_path / "metadata.jsonl",
        {"file_name": "a.png", column: "a  zorvex\nasleep", "source": "phone"},
        {"file_name": "sub/cafe\u0301.png", column: "a café"},
    )
    items, findings = listed(tmp_path)
    assert {name: item.caption for name, item in items.items()} == {
        "a.png": "a zorvex asleep",
        "sub/caf\u00e9.png": "a café",
    }
    assert items["a.png"].caption_place == f"{tmp_path / 'metadata.jsonl'}:1"
    assert findings == []


def test_a_line_separator_within_a_caption_does_not_end_its_line(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    lines(tmp_path / "metadata.jsonl", {"file_name": "a.png", "text": "a dog\u2028on\u0085grass"})
    items, findings = listed(tmp_path)
    assert items["a.png"].caption == "a dog on grass"
    assert findings == []


def test_captions_come_from_metadata_csv(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    rows = 'file_name,text\na.png,"a zorvex, ""asleep"""\nb.png,"over\ntwo lines"\n'
    (tmp_path / "metadata.csv").write_text(rows, encoding="utf-8-sig")
    items, findings = listed(tmp_path)
    assert [item.caption for item in items.values()] == ['a zorvex, "asleep"', "over two lines"]
    assert findings == []


def test_a_metadata_file_speaks_for_its_own_folder(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "sub" / "a.png")
    lines(tmp_path / "sub" / "metadata.jsonl", {"file_name": "a.png", "text": "below"})
    items, _ = listed(tmp_path)
    assert (items["a.png"].caption, items["sub/a.png"].caption) == ("", "below")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "the line is no JSON: "),
        ('["a.png"]', "the line is no JSON object"),
        ('{"image": "a.png", "text": "x"}', "no file_name among image, text"),
        ('{"file_name": "a.png", "tags": "x"}', "no caption of a.png: wanted text or caption or prompt"),
        ('{"file_name": "a.png", "text": "a dog \\ud83d"}', "half a letter (a lone surrogate) in the row of 'a.png'"),
        ('{"file_name": "a.png", "text": 5}', "no caption of a.png: wanted text or caption or prompt"),
    ],
)
def test_a_metadata_line_that_is_not_understood_is_an_error_with_its_line(
    tmp_path: Path, line: str, message: str
) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(f"\n{line}\n")
    _, findings = listed(tmp_path)
    (finding,) = findings
    assert (finding.severity, finding.check) == ("error", "bad-metadata")
    assert finding.message.startswith(message)
    assert finding.where == f"{tmp_path / 'metadata.jsonl'}:2"


def test_a_metadata_file_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_bytes(b"file_name,text\na.png,caf\xe9\n")
    (finding,) = listed(tmp_path)[1]
    assert (finding.check, finding.severity) == ("bad-metadata", "error")


def test_metadata_of_pictures_that_are_not_there_is_told(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    lines(
        tmp_path / "metadata.jsonl",
        {"file_name": "a.png", "text": "here"},
        {"file_name": "gone.png", "text": "gone"},
        {"file_name": "../../etc/passwd", "text": "outside"},
    )
    _, findings = listed(tmp_path)
    assert [(each.check, each.message) for each in findings] == [
        ("stray-caption", "there is no picture gone.png"),
        ("stray-caption", "there is no picture ../../etc/passwd"),
    ]


def test_two_places_with_different_captions_are_an_error_and_with_equal_ones_none(tmp_path: Path) -> None:
    for name, text in (("a", "one thing"), ("b", "the same")):
        picture(tmp_path / f"{name}.png").with_suffix(".txt").write_text(text)
    rows = [{"file_name": "a.png", "text": "another"}, {"file_name": "b.png", "text": "the same"}]
    lines(tmp_path / "metadata.jsonl", *rows)
    items, findings = listed(tmp_path)
    assert [(each.check, each.picture) for each in findings] == [("two-captions", "a.png")]
    assert (items["a.png"].caption, items["b.png"].caption) == (None, "the same")


def test_a_picture_that_is_named_twice_in_metadata_is_an_error(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    lines(tmp_path / "metadata.jsonl", *[{"file_name": "a.png", "text": text} for text in ("one", "two")])
    items, findings = listed(tmp_path)
    assert items["a.png"].caption == "one"
    assert [(each.check, each.severity) for each in findings] == [("bad-metadata", "error")]


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("10_zorvex dog", KohyaFolder(10, "zorvex dog")),
        ("1_style", KohyaFolder(1, "style")),
        ("2024_holiday", None),
        ("photos", None),
        ("0_never", None),
        ("_x", None),
        ("10_", None),
    ],
)
def test_folder_names_are_read_as_kohya_reads_them(name: str, meaning: KohyaFolder | None) -> None:
    assert kohya_folder(name) == meaning


def test_a_folders_name_gives_repeats_and_the_caption_of_pictures_without_one(tmp_path: Path) -> None:
    picture(tmp_path / "10_zorvex dog" / "a.png")
    picture(tmp_path / "10_zorvex dog" / "b.png").with_suffix(".txt").write_text("a zorvex asleep")
    picture(tmp_path / "3_zorvex dog at night" / "more" / "c.png")
    items, findings = listed(tmp_path, repeats=2)
    assert [(item.repeats, item.caption) for item in items.values()] == [
        (6, "zorvex dog at night"),
        (20, "zorvex dog"),
        (20, "a zorvex asleep"),
    ]
    assert [each.check for each in findings] == ["named-folder", "named-folder"]


def test_the_data_sets_own_folder_may_have_such_a_name(tmp_path: Path) -> None:
    picture(tmp_path / "4_zorvex dog" / "a.png")
    items, _ = listed(tmp_path / "4_zorvex dog")
    assert (items["a.png"].repeats, items["a.png"].caption) == (4, "zorvex dog")


def test_the_repaired_copy_has_captions_of_its_own(tmp_path: Path) -> None:
    from test_zoo import report_of

    from fluxtune.dataset.mending import mend
    from fluxtune.events import ignore

    (tmp_path / "photos").mkdir()
    photograph().save(tmp_path / "photos" / "a.png")
    lines(tmp_path / "photos" / "metadata.jsonl", {"file_name": "a.png", "text": "a cup"})
    (done,) = mend(report_of(tmp_path / "photos"), tmp_path / "copy", ignore)
    assert done.done == ("caption taken from metadata.jsonl:1",)
    assert (tmp_path / "copy" / "a.txt").read_text() == "a cup\n"


def with_row(folder: Path, **settings: object) -> dict[str, Item]:
    """The pictures of a folder by the settings of its row."""
    row = FolderConfig.model_validate({"path": str(folder), **settings})
    return {item.name: item for item in list_folders([row]).items}


def test_a_folder_that_is_given_as_a_dot_has_a_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "10_zorvex dog" / "a.png")
    monkeypatch.chdir(tmp_path / "10_zorvex dog")
    items, _ = listed(Path("."))
    assert (items["a.png"].repeats, items["a.png"].caption) == (10, "zorvex dog")


def test_a_row_may_take_the_names_of_folders_for_names_alone(tmp_path: Path) -> None:
    picture(tmp_path / "10_zorvex dog" / "a.png")
    item = with_row(tmp_path, folder_names=False)["10_zorvex dog/a.png"]
    assert (item.repeats, item.caption) == (1, "")


def test_a_row_may_leave_out_the_folders_within_it_and_that_is_told(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "night" / "b.png")
    listing = list_folders([FolderConfig(path=str(tmp_path), nested=False)])
    assert [item.name for item in listing.items] == ["a.png"]
    assert [(each.check, each.message) for each in listing.findings] == [
        ("unread-folder", "the folders within it are not read: night")
    ]


def test_with_an_ending_other_captions_do_not_count(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "a.tags").write_text("two")
    lines(tmp_path / "metadata.jsonl", {"file_name": "a.png", "text": "three"})
    assert with_row(tmp_path, captions=".tags")["a.png"].caption == "two"


def test_captions_may_be_the_names_of_the_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "a_zorvex_on_grass.png").with_suffix(".txt").write_text("not this")
    assert with_row(tmp_path, captions="names")["a_zorvex_on_grass.png"].caption == "a zorvex on grass"


def test_a_default_caption_is_of_the_pictures_without_one(tmp_path: Path) -> None:
    picture(tmp_path / "a.png").with_suffix(".txt").write_text("mine")
    picture(tmp_path / "b.png")
    picture(tmp_path / "c.png").with_suffix(".txt").write_text("")
    items = with_row(tmp_path, default_caption="a dog")
    assert [item.caption for item in items.values()] == ["mine", "a dog", "a dog"]
    assert {item.caption for item in with_row(tmp_path, default_caption="a dog", captions="none").values()} == {"a dog"}


def test_prefix_and_suffix_go_around_each_caption_but_make_none(tmp_path: Path) -> None:
    picture(tmp_path / "a.png").with_suffix(".txt").write_text("a dog")
    picture(tmp_path / "b.png")
    items = with_row(tmp_path, caption_prefix="a drawing,", caption_suffix="in ink")
    assert [item.caption for item in items.values()] == ["a drawing, a dog in ink", ""]


def test_of_several_lines_the_first_with_words_may_count_alone(tmp_path: Path) -> None:
    picture(tmp_path / "a.png").with_suffix(".txt").write_text("\na dog\na cat\n")
    assert with_row(tmp_path, caption_lines="first")["a.png"].caption == "a dog"
    assert with_row(tmp_path)["a.png"].caption == "a dog a cat"


def test_flat_masks_belong_to_nested_pictures_by_name_unless_another_has_their_path(tmp_path: Path) -> None:
    for name in ("photos/sub/a.png", "photos/b.png", "photos/sub/b.png", "masks/a.png", "masks/b.png"):
        picture(tmp_path / name)
    items = with_row(tmp_path / "photos", masks=str(tmp_path / "masks"))
    assert {name: item.mask and item.mask.name for name, item in items.items()} == {
        "b.png": "b.png",
        "sub/a.png": "a.png",
        "sub/b.png": None,
    }
