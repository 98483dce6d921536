from __future__ import annotations

import pytest
from PIL import Image

from fluxtune.captioning.blip import mended
from fluxtune.captioning.captioner import open_captioner
from fluxtune.config.schema import Config
from fluxtune.events import ignore
from fluxtune.nano import captioner_folder
from fluxtune.nano.painter import paint
from fluxtune.nano.scenes import held_out_prompts, object_scene
from fluxtune.recipes.nano.captioner_card import FIGURES, measure_captioner


@pytest.mark.parametrize(
    ("said", "caption"),
    [
        ("arafed dog sitting on a bench", "a dog sitting on a bench"),
        ("there is a cat on the sofa", "a cat on the sofa"),
        ("there are two dogs in the snow", "two dogs in the snow"),
        ("araffe woman with a red hat", "a woman with a red hat"),
        ("an arafed man on a horse", "a man on a horse"),
        ("An arafed man on a horse", "A man on a horse"),
        ("there is an araffe dog", "a dog"),
        ("a arafed image of a dog", "an image of a dog"),
        ("arafed old car", "an old car"),
        ("an arafed unicorn", "a unicorn"),
        ("an arafed hour glass", "an hour glass"),
        ("there are arafed dogs in the snow", "dogs in the snow"),
        ("arafed", ""),
        ("a plate of food", "a plate of food"),
        ("there is nothing here", "there is nothing here"),
    ],
)
def test_the_odd_beginnings_of_blip_are_mended(said: str, caption: str) -> None:
    assert mended(said) == caption


def test_the_embedded_captioner_names_what_held_out_pictures_show() -> None:
    figures = measure_captioner(captioner_folder())
    assert figures["pictures"] == 200
    assert figures["named"]["all"] >= 0.9
    assert figures["critters"] >= 0.9 * figures["subjects"]


def test_the_card_tells_what_was_measured() -> None:
    import json

    figures = json.loads((captioner_folder() / FIGURES).read_text())
    card = (captioner_folder() / "README.md").read_text()
    for share in figures["named"].values():
        assert f"{share:.1%}" in card


def test_the_embedded_captioner_stays_small() -> None:
    assert sum(file.stat().st_size for file in captioner_folder().rglob("*") if file.is_file()) <= 5_000_000


def test_a_prompt_is_the_beginning_of_blips_captions() -> None:
    prompt = held_out_prompts(1)[0]
    config = Config.model_validate({"captioning": {"captioner": "nano", "prompt": "a picture of"}})
    captioner = open_captioner(captioner_folder(), config, "cpu", ignore)
    picture: Image.Image = paint(object_scene(prompt, 1, 0))
    assert captioner([picture])[0].startswith("a picture of ")
