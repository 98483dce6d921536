from __future__ import annotations

from pathlib import Path

import pytest

from fluxtune.captioning.wording import Wording, named, without_introduction
from fluxtune.config.schema import Config
from fluxtune.errors import UsageError

PICTURE = Path("photos/beach/01.jpg")


def test_the_class_word_becomes_the_trigger_with_its_article() -> None:
    assert (
        named("an elephant beside the elephant's house", "elephant", "zorvex") == "a zorvex beside the zorvex's house"
    )
    assert named("A dog and a hotdog", "dog", "ohwx") == "An ohwx and a hotdog"


def test_a_caption_without_the_class_word_gets_the_trigger_in_front() -> None:
    assert Wording("zorvex", "dog")("a brown puppy on a lawn", PICTURE) == "zorvex, a brown puppy on a lawn"


def test_a_caption_that_has_the_trigger_stays_as_it_is() -> None:
    assert Wording("zorvex", "dog")("a zorvex beside a dog", PICTURE) == "a zorvex beside a dog"


def test_letters_that_mean_something_to_patterns_are_only_letters() -> None:
    assert Wording("a+b\\1", "c++")("a c++ book", PICTURE) == "an a+b\\1 book"


def test_prefix_and_suffix_are_set_off_by_one_space_unless_punctuation_follows() -> None:
    wording = Wording(prefix="photo of ", suffix=", 35mm film")
    assert wording("a dog", PICTURE) == "photo of a dog, 35mm film"
    assert Wording(prefix="photo of", suffix="at night")("a dog", PICTURE) == "photo of a dog at night"


def test_a_template_sees_caption_trigger_class_name_and_folder() -> None:
    wording = Wording("zorvex", "dog", template="{trigger} ({class_word}) {folder}/{name}: {caption}")
    assert wording("a cat", PICTURE) == "zorvex (dog) beach/01: a cat"


@pytest.mark.parametrize(
    "template", ["{caption} {typo}", "{caption", "no caption at all", "{caption!r}", "{caption.x}"]
)
def test_a_template_that_cannot_be_filled_is_refused_with_its_placeholders(template: str) -> None:
    config = Config.model_validate({"captioning": {"template": template}})
    with pytest.raises(UsageError) as error:
        Wording.of(config)
    assert error.value.where == "captioning.template"
    assert "{caption}" in str(error.value.hint)


@pytest.mark.parametrize(
    ("said", "caption"),
    [
        ("The image shows a dog on a lawn.", "A dog on a lawn."),
        ("This photograph captures a mug.", "A mug."),
        ("In this image, we can see a cup", "A cup"),
        ("In this image", "In this image"),
        ("a picture of a dog", "a picture of a dog"),
        ("", ""),
    ],
)
def test_an_introduction_goes(said: str, caption: str) -> None:
    assert without_introduction(said) == caption


def test_what_is_said_of_dr_smith_in_baker_st_is_not_cut_at_the_dots() -> None:
    said = "A portrait of Dr. Smith in Baker St. near a 3.5 inch disk. The light is wa"
    assert Wording()(said, PICTURE) == said


def test_several_lines_become_one() -> None:
    assert Wording()("a dog\n\n  on a\tlawn ", PICTURE) == "a dog on a lawn"


def test_line_breaks_in_prefix_suffix_and_template_become_spaces() -> None:
    wording = Wording(prefix="photo\nof", suffix="\nat night\n", template="a view:\n{caption}")
    once = wording.reworded("a dog", PICTURE)
    assert once == "photo of a view: a dog at night"
    assert wording.reworded(once, PICTURE) == once


def test_braces_in_the_name_of_a_file_are_only_letters() -> None:
    assert Wording(template="{name}: {caption}")("a dog", Path("photos/{trigger}.jpg")) == "{trigger}: a dog"


@pytest.mark.parametrize(
    "suffix", ["(film)", "<lora:x>", "#film", "[film]", "{film}", '"film"', "'film'", "«film»", "-"]
)
def test_a_suffix_that_opens_something_is_set_off_by_a_space(suffix: str) -> None:
    assert Wording(suffix=suffix)("a dog", PICTURE) == f"a dog {suffix}"


@pytest.mark.parametrize(
    "suffix", [", film", ". Film.", "; film", ": film", "!", "?", "...", "…", ")", "]", "}", "»", "、"]
)
def test_a_suffix_that_closes_something_is_set_without_a_space(suffix: str) -> None:
    assert Wording(suffix=suffix)("a dog", PICTURE) == f"a dog{suffix}"


def test_what_people_wrote_keeps_its_introduction() -> None:
    assert Wording(suffix=", film").reworded("The image shows a dog.", PICTURE) == "The image shows a dog., film"


@pytest.mark.parametrize(
    ("wording", "caption", "expected"),
    [
        (Wording(prefix="photo"), "photograph of a dog", "photo photograph of a dog"),
        (Wording(suffix="film"), "a dog on microfilm", "a dog on microfilm film"),
        (Wording(suffix="film"), "a dog on film", "a dog on film"),
        (Wording(prefix="photo of", suffix=", film"), "photo of, film", "photo of, film"),
        (Wording(prefix="photo of", suffix=", film"), "a dog, film", "photo of a dog, film"),
        (Wording("zorvex", "dog", prefix="photo of"), "a cat", "zorvex, photo of a cat"),
        (Wording("zorvex", "dog", prefix="photo of"), "zorvex, photo of a cat", "zorvex, photo of a cat"),
        (Wording("zorvex", "dog", template="{trigger}, {caption}"), "a dog", "zorvex, a zorvex"),
        (Wording("zorvex", "dog", template="{trigger}, {caption}"), "zorvex, a dog", "zorvex, a dog"),
        (Wording("zorvex", "dog"), "[trigger] on a lawn", "zorvex on a lawn"),
        (Wording("zorvex", prefix="photo of [trigger],"), "a lawn", "photo of zorvex, a lawn"),
    ],
)
def test_wording_anew_adds_what_a_caption_has_not(wording: Wording, caption: str, expected: str) -> None:
    assert wording.reworded(caption, PICTURE) == expected


AFFIXES = [
    ("", ""), ("photo of", ""), ("", ", film"), ("zorvex, photo of", "(film)"), ("a dog:", "with a dog"),
    ("photo", "photo"), ("of [trigger],", "."), (" art\n", " !"),
]  # fmt: skip
TEMPLATES = [
    None, "{trigger}, {caption}", "{caption}, {caption}", "{folder}/{name}: {caption} ({trigger})",
    "photo of {caption}", "{{{class_word}}} {caption}.", "[trigger] (a+) {caption}",
]  # fmt: skip
CAPTIONS = [
    "a dog", "A dog and a hotdog.", "a cat", "zorvex", "zorvex, a dog", "a zorvex beside a dog", "[trigger] on a lawn",
    "photo", "photo of", "photo of a dog", "photograph of a dog", "photo of photo of a cat", "zorvex, photo of a cat",
    "zorvex, zorvex, a cat", "zorvex, photo of a zorvex", ", film", "a cat, film", "a cat , film, film", "film", ".",
    "a cat (film)", "of zorvex, a cat", "beach/01: a dog", "{dog} a cat.", "{caption}", "a, a, a", "a [trigger]film",
]  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(("prefix", "suffix"), AFFIXES)
@pytest.mark.parametrize(
    ("trigger", "class_word", "is_subject"),
    [(None, "dog", True), ("zorvex", "dog", True), ("zorvex", "dog", False), ("zorvex dog", "dog", True)],
)
def test_wording_twice_is_wording_once(
    trigger: str | None, class_word: str | None, is_subject: bool, prefix: str, suffix: str, template: str | None
) -> None:
    wording = Wording(trigger, class_word, prefix, suffix, template, is_subject)
    for caption in CAPTIONS:
        for once in (wording(caption, PICTURE), wording.reworded(caption, PICTURE)):
            assert wording.reworded(once, PICTURE) == once, caption


def of_regularization(**captioning: object) -> Wording:
    dataset = {"trigger": "zorvex", "class_word": "dog"}
    return Wording.of(Config.model_validate({"dataset": dataset, "captioning": captioning}), is_subject=False)


def test_regularization_pictures_get_prefix_and_suffix_but_no_trigger() -> None:
    assert of_regularization(prefix="photo of", suffix=", film")("a dog", PICTURE) == "photo of a dog, film"


def test_a_template_has_the_class_word_for_the_trigger_of_regularization_pictures() -> None:
    assert of_regularization(template="{trigger}, {caption}")("a cat", PICTURE) == "dog, a cat"


def test_a_prefix_that_names_the_trigger_names_the_class_of_regularization_pictures() -> None:
    assert of_regularization(prefix="photo of zorvex,")("a lawn", PICTURE) == "photo of dog, a lawn"
