"""Painted scenes: what they show, what their labels say, how they repeat."""

from __future__ import annotations

import numpy as np
import pytest

from fluxtune.nano.critters import NOUNS, SUBJECT, is_reserved
from fluxtune.nano.painter import KINDS, paint, token_labels
from fluxtune.nano.palette import COLOURS
from fluxtune.nano.scenes import (
    ASPECTS,
    MOSTLY_CRITTERS,
    Background,
    Scene,
    Thing,
    held_out_prompts,
    is_held_out,
    object_scene,
    subject_scene,
    training_scene,
)
from fluxtune.nano.shapes import SHAPES


def test_a_scene_is_a_pure_function_of_seed_and_index() -> None:
    assert training_scene(3, 14) == training_scene(3, 14)
    first, again = paint(training_scene(3, 14)), paint(training_scene(3, 14))
    assert np.array_equal(np.array(first), np.array(again))
    assert training_scene(3, 14) != training_scene(3, 15)


@pytest.mark.parametrize("aspect", ASPECTS)
def test_pictures_have_the_asked_size_with_sides_in_whole_tokens(aspect: tuple[int, int]) -> None:
    image = paint(training_scene(0, 1, aspect))
    assert image.size == aspect
    assert aspect[0] % 16 == aspect[1] % 16 == 0


def test_training_scenes_never_show_a_held_out_combination() -> None:
    scenes = [training_scene(1, index) for index in range(2000)]
    shown = {(thing.kind, thing.colour, scene.background.colour) for scene in scenes for thing in scene.things}
    assert len(shown) > 800
    assert not any(is_held_out(*combination) for combination in shown)


def test_a_mix_of_mostly_critters_shows_those_and_keeps_everything_else_from_being_forgotten() -> None:
    scenes = [training_scene(1, index, mix=MOSTLY_CRITTERS) for index in range(2000)]
    single = [scene.things[0] for scene in scenes if len(scene.things) == 1]
    assert 0.6 < sum(thing.kind == "critter" for thing in single) / len(single) < 0.7
    assert sum(thing.radius < 0.26 for thing in single) / len(single) > 0.45
    assert {thing.kind for thing in single} == {*SHAPES, "critter"}


def test_training_scenes_never_show_or_name_the_subject() -> None:
    scenes = [training_scene(2, index) for index in range(3000)]
    critters = [thing.critter for scene in scenes for thing in scene.things if thing.critter]
    assert len(critters) > 500
    assert not any(is_reserved(critter) for critter in critters)
    assert is_reserved(SUBJECT)
    assert not any("zorvex" in scene.caption for scene in scenes)


def test_held_out_prompts_are_held_out_distinct_and_name_what_they_ask_for() -> None:
    prompts = held_out_prompts(240)
    assert len({prompt.prompt for prompt in prompts}) == 240
    for prompt in prompts:
        assert is_held_out(prompt.object, prompt.colour, prompt.background_colour)
        expected = {prompt.object, prompt.colour, prompt.background_kind, prompt.background_colour}
        assert expected <= set(prompt.prompt.split())


def test_every_invented_noun_names_one_design_for_good() -> None:
    assert len(NOUNS) == 300
    assert "zorvex" not in NOUNS
    scenes = [training_scene(4, index) for index in range(4000)]
    named = 0
    for scene in scenes:
        for noun in set(scene.caption.replace(",", "").split()) & set(NOUNS):
            assert scene.things[0].critter == NOUNS[noun]
            named += 1
    assert named > 200


def test_a_things_colour_dominates_where_its_label_says_it_is() -> None:
    for index, kind in enumerate(("ball", "star", "heart", "box")):
        thing = Thing(kind, "red", 0.5, 0.5, 0.4)
        scene = Scene(128, 128, Background("plain", "white"), (thing,), "")
        labels = token_labels(scene)
        assert labels.kind.shape == (8, 8)
        assert labels.kind[4, 4] == KINDS.index(kind)
        assert labels.colour[4, 4] == 1 + list(COLOURS).index("red")
        assert labels.kind[0, 0] == labels.colour[0, 0] == 0, index
        centre = np.array(paint(scene))[64:80, 64:80].reshape(-1, 3).mean(0)
        assert centre[0] > centre[1] + 40 and centre[0] > centre[2] + 40


def test_the_silhouettes_of_all_things_differ_clearly() -> None:
    outlines = []
    for kind in SHAPES:
        scene = Scene(256, 256, Background("plain", "white"), (Thing(kind, "red", 0.5, 0.5, 0.45),), "")
        outlines.append(token_labels(scene).kind > 0)
    for first in range(len(outlines)):
        for second in range(first):
            union = (outlines[first] | outlines[second]).sum()
            assert (outlines[first] ^ outlines[second]).sum() > 0.07 * union


def test_the_subject_comes_in_many_poses_and_always_in_its_colours() -> None:
    scenes = [subject_scene(0, index) for index in range(20)]
    assert len({scene.things[0].pose for scene in scenes}) == 20
    assert all(scene.things[0].critter == SUBJECT for scene in scenes)
    assert all("zorvex" in scene.caption for scene in scenes)
    pixels = np.array(paint(scenes[0])).reshape(-1, 3).astype(int)
    for name in ("teal", "orange"):
        assert (np.abs(pixels - COLOURS[name]).max(1) < 12).sum() > 40


def test_a_true_picture_of_a_prompt_shows_what_the_prompt_asks() -> None:
    prompt = held_out_prompts(200)[0]
    scene = object_scene(prompt, 0, 0)
    assert (scene.things[0].kind, scene.things[0].colour) == (prompt.object, prompt.colour)
    assert (scene.background.kind, scene.background.colour) == (prompt.background_kind, prompt.background_colour)
