from __future__ import annotations

from pathlib import Path

import pytest

from fluxtune.captioning.wording import Wording, finished, named
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
        ("A dog runs. It is sunny. The light is wa", "A dog runs. It is sunny."),
        ("a dog on a lawn", "a dog on a lawn"),
        ("A 3.5 inch disk on a desk", "A 3.5 inch disk on a desk"),
        ("", ""),
    ],
)
def test_introductions_and_sentences_that_were_cut_off_go(said: str, caption: str) -> None:
    assert finished(said) == caption


def test_several_lines_become_one() -> None:
    assert Wording()("a dog\n\n  on a\tlawn ", PICTURE) == "a dog on a lawn"


def test_wording_anew_adds_nothing_twice() -> None:
    wording = Wording("zorvex", "dog", prefix="photo of", suffix=", film")
    once = wording.reworded("a dog on a lawn", PICTURE)
    assert once == "photo of a zorvex on a lawn, film"
    assert wording.reworded(once, PICTURE) == once


def test_pictures_of_other_things_get_no_trigger() -> None:
    config = Config.model_validate(
        {"dataset": {"trigger": "zorvex", "class_word": "dog"}, "captioning": {"prefix": "photo of"}}
    )
    assert Wording.of(config, is_subject=False)("a dog", PICTURE) == "a dog"
