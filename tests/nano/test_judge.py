"""The judge that ships: right about true pictures, hard on spoiled ones."""

from __future__ import annotations

import pytest

from fluxtune.nano.judge import NOTHING, WEIGHTS, Judge, Verdict, agrees
from fluxtune.nano.painter import paint
from fluxtune.nano.scenes import ASPECTS, HeldOutPrompt, held_out_prompts, object_scene
from fluxtune.recipes.nano.judge import measure_judge

FIGURES = ("right", "weathered", "wrong", "spoiled", "subject", "near_misses", "ordinary")


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


@pytest.fixture(scope="module")
def reached(judge: Judge) -> dict[str, float]:
    return measure_judge(judge, seed=77, size=100)


@pytest.mark.parametrize("figure", FIGURES)
def test_the_judge_is_right_on_fresh_pictures(reached: dict[str, float], figure: str) -> None:
    assert reached[figure] >= 0.95


def test_verdicts_come_in_the_order_of_the_pictures_whatever_their_sizes(judge: Judge) -> None:
    prompts = held_out_prompts(25)
    pictures = [
        paint(object_scene(prompt, 5, index, ASPECTS[index % len(ASPECTS)])) for index, prompt in enumerate(prompts)
    ]
    verdicts = judge.look(pictures)
    assert sum(all(agrees(verdict, prompt)) for verdict, prompt in zip(verdicts, prompts, strict=True)) >= 24


def test_a_picture_agrees_attribute_by_attribute() -> None:
    prompt = HeldOutPrompt("a red star on a plain blue background", "star", "red", "plain", "blue")
    assert agrees(Verdict("star", "red", "plain", "blue", False), prompt) == (True, True, True, True)
    assert agrees(Verdict("moon", "red", "plain", "pink", False), prompt) == (False, True, True, False)


def test_what_shows_no_whole_thing_has_no_colour() -> None:
    prompt = HeldOutPrompt("a red star on a plain blue background", "star", "red", "plain", "blue")
    assert agrees(Verdict(NOTHING, "red", "plain", "blue", False), prompt) == (False, False, True, True)


def test_the_judges_file_stays_small() -> None:
    assert WEIGHTS.stat().st_size <= 400_000
