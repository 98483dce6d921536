from __future__ import annotations

from pathlib import Path

import pytest

from fluxtune.errors import UsageError
from fluxtune.sampling.wildcards import alternatives, drawn, literal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "wildcards"
    (place / "animals").mkdir(parents=True)
    (place / "colour.txt").write_text("# of the rainbow\nred\n\nblue\ngrün\n", encoding="utf-8")
    (place / "animals" / "tame.txt").write_text("a __colour__ cat\n", encoding="utf-8")
    return place


def test_a_prompt_without_anything_to_draw_stays_as_it_is() -> None:
    text = "a {cup} | a set of {1}, x __ y"
    assert drawn(text, 1, None) == text


def test_every_choice_is_drawn_by_some_seed_and_the_same_by_the_same(folder: Path) -> None:
    template = "a {big|small|} __colour__ cup"
    made = [drawn(template, seed, folder) for seed in range(60)]
    assert made == [drawn(template, seed, folder) for seed in range(60)]
    assert {text.split()[1] for text in made} == {"big", "small", "red", "blue", "grün"}
    assert {text.split()[-2] for text in made} == {"red", "blue", "grün"}


def test_places_in_a_prompt_are_drawn_apart(folder: Path) -> None:
    pairs = {tuple(drawn("__colour__ __colour__", seed, folder).split()) for seed in range(80)}
    assert len(pairs) == 9


def test_choices_and_files_hold_further_choices(folder: Path) -> None:
    assert drawn("{__animals/tame__|__animals/tame__} on {{a|a}|a}", 3, folder).endswith(" cat on a")
    assert drawn("__animals/tame__", 3, folder).split()[1] in ("red", "blue", "grün")


def test_escaped_signs_stand_for_themselves_also_in_what_is_drawn(folder: Path) -> None:
    (folder / "code.txt").write_text("\\{x|y\\}\n")
    assert drawn(r"\{red|blue\} \__colour\__ \__colour__", 1, None) == "{red|blue} __colour__ __colour__"
    assert drawn("__code__", 1, folder) == "{x|y}"
    assert {drawn(r"{a\|b|\{c\}}", seed, None) for seed in range(20)} == {"a|b", "{c}"}
    assert drawn(r"a \(cat\), C:\cups", 1, None) == r"a \(cat\), C:\cups"


@pytest.mark.parametrize(
    "text", ["{a|b} __c__", r"\{a|b\} \__c__", "a __ b_ ___ {{x}} |", "____colour____", r"\\{a|b} \|", "plain", ""]
)
def test_a_literal_text_is_drawn_as_itself(text: str, folder: Path) -> None:
    assert {drawn(literal(text), seed, folder) for seed in range(5)} == {text}


def test_alternatives_are_parted_where_no_choice_is_and_nothing_is_escaped() -> None:
    assert alternatives(r"a {b|{c|d}|e}|f \| g|\{h|i\}") == ["a {b|{c|d}|e}", r"f \| g", r"\{h", r"i\}"]


def test_what_is_not_chosen_is_not_looked_for(folder: Path) -> None:
    template = "{cup|__gone__}"
    made = set()
    for seed in range(20):
        try:
            made.add(drawn(template, seed, folder))
        except UsageError:
            made.add("refused")
    assert made == {"cup", "refused"}


@pytest.mark.parametrize(
    ("template", "message", "hint"),
    [
        ("a __gone__ cup", "no file for the wildcard __gone__", "there are __animals/tame__, __colour__"),
        ("a __empty__ cup", "nothing in this wildcard file", "a choice on each line"),
        ("a __round__ cup", "drawn without end", "in a circle"),
        ("a __x/../../secret__ cup", "leads out of its folder", "rename"),
    ],
)
def test_what_cannot_be_drawn_is_a_usage_error(folder: Path, template: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        if "gone" not in template:
            (folder / "empty.txt").write_text("\n# nothing\n")
            (folder / "round.txt").write_text("x __round__\n")
        drawn(template, 1, folder)
    assert hint in str(error.value.hint)


def test_a_wildcard_without_a_folder_says_what_to_give() -> None:
    with pytest.raises(UsageError, match="there is no folder of wildcards") as error:
        drawn("a __colour__ cup", 1, None)
    assert error.value.hint == "give the folder that holds colour.txt: --wildcards FOLDER"
