"""Captions: what is read from the file, and where the trigger goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fluxtune.dataset.captions import (
    captions_by_stem,
    has_trigger,
    mirrored,
    read_caption,
    stem_of,
    with_class,
    with_trigger,
)
from fluxtune.errors import DataError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "dog.txt"


def test_white_space_becomes_single_spaces_on_one_line(file: Path) -> None:
    file.write_bytes("  a dog \r\n\r\n on\ta\u00a0  beach \n".encode())
    assert read_caption(file) == "a dog on a beach"


def test_a_byte_order_mark_is_not_part_of_the_caption(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfa dog")
    assert read_caption(file) == "a dog"


def test_letters_are_composed_so_that_equal_captions_are_equal(file: Path) -> None:
    file.write_text("cafe\u0301", encoding="utf-8")
    assert read_caption(file) == "caf\u00e9"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_windows_quote_is_refused_by_byte_and_position(file: Path, mark: bytes) -> None:
    file.write_bytes(mark + b"the dog\x92s ball")
    with pytest.raises(DataError) as caught:
        read_caption(file)
    assert caught.value.where == str(file)
    assert f"byte 0x92 at position {len(mark) + 7}" in caught.value.message
    assert caught.value.hint == "save the caption as UTF-8 text"


@pytest.mark.parametrize("content", ["a dog".encode("utf-16-le"), b"a\x00dog"])
def test_zero_bytes_are_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(DataError, match="zero byte at position 1"):
        read_caption(file)


def test_utf16_with_its_mark_is_refused(file: Path) -> None:
    file.write_bytes("caf\u00e9".encode("utf-16"))
    with pytest.raises(DataError):
        read_caption(file)


def test_captions_are_found_by_the_name_of_their_picture() -> None:
    files = [Path("in/dog.v2.TXT"), Path("in/dog.v2.jpg"), Path("in/cat.caption"), Path("in/notes.md")]
    assert captions_by_stem(files) == {"in/dog.v2": [files[0]], "in/cat": [files[2]]}


def test_a_name_is_the_same_composed_or_not() -> None:
    assert stem_of(Path("cafe\u0301.jpg")) == stem_of(Path("caf\u00e9.txt"))


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a dog on a beach", "zorvex, a dog on a beach"),
        ("a zorvex on a beach", "a zorvex on a beach"),
        ("zorvex's ball", "zorvex's ball"),
        ("a photo of (zorvex)", "a photo of (zorvex)"),
        ("two zorvexes", "zorvex, two zorvexes"),
        ("a Zorvex", "zorvex, a Zorvex"),
        ("", "zorvex"),
    ],
)
def test_the_trigger_is_put_in_front_unless_it_is_there_as_a_whole_word(caption: str, expected: str) -> None:
    assert with_trigger(caption, "zorvex") == expected


def test_a_trigger_may_hold_signs_that_mean_something_in_patterns() -> None:
    assert with_trigger("a [x] c++ mug", "c++") == "a [x] c++ mug"
    assert with_trigger("a ccc mug", "c++") == "c++, a ccc mug"


def test_the_class_word_takes_each_place_of_the_trigger() -> None:
    caption = "zorvex, a zorvex beside two zorvexes"
    assert with_class(caption, "zorvex", r"small \1 dog") == (r"small \1 dog, a small \1 dog beside two zorvexes")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a zorvex at the left", "a zorvex at the right"),
        ("Left of a RIGHT turn", "Right of a LEFT turn"),
        ("leftovers and bright copyright", "leftovers and bright copyright"),
    ],
)
def test_in_a_mirror_left_and_right_change_places(caption: str, expected: str) -> None:
    assert mirrored(caption) == expected
    assert mirrored(mirrored(caption)) == caption


def test_ai_toolkits_placeholder_stands_for_the_trigger() -> None:
    assert with_trigger("a photo of [trigger] asleep", "zorvex") == "a photo of zorvex asleep"
    assert has_trigger("a photo of [trigger]", "zorvex")


def test_an_ending_may_have_several_dots(tmp_path: Path) -> None:
    file = tmp_path / "a.Tags.TXT"
    assert captions_by_stem([file], [".tags.txt"]) == {str(tmp_path / "a"): [file]}
