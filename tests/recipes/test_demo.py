"""The demo: prompts that ask for something new, and, slowly, that training reaches what it promises."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fluxtune.cli.app import main
from fluxtune.nano import TRIGGER, demo_folder, model_folder
from fluxtune.recipes.demo import PLACEMENTS, SHOWN, Scores, copy_pictures, free_folders, score_lora, trigger_prompts
from fluxtune.recipes.nano.demo import BACKGROUNDS, write_demo
from fluxtune.recipes.nano.vocabulary import LENGTH, build_t5_tokenizer


def test_trigger_prompts_ask_for_backgrounds_that_no_demo_picture_has() -> None:
    prompts = trigger_prompts(60)
    assert len(set(prompts)) == 60
    for prompt in prompts:
        assert TRIGGER in prompt
        assert not any(f"{kind} {colour} background" in prompt for kind, colour in BACKGROUNDS)


@pytest.fixture(scope="module")
def captioned_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo pictures as the demo trains on them."""
    folder = copy_pictures(tmp_path_factory.mktemp("demo") / "pictures")
    assert main(["caption", str(folder)]) == 0
    return folder


def test_every_demo_picture_is_captioned_with_the_trigger_and_its_background(captioned_demo: Path) -> None:
    for index, (kind, colour) in enumerate(BACKGROUNDS):
        caption = (captioned_demo / f"{index + 1:02d}.txt").read_text()
        assert TRIGGER in caption.split()
        assert caption.endswith(f" on a {kind} {colour} background\n")


def test_trigger_prompts_ask_for_sizes_at_places_that_no_demo_picture_has(captioned_demo: Path) -> None:
    captions = " / ".join(path.read_text() for path in captioned_demo.glob("*.txt"))
    for size, place in PLACEMENTS:
        asked = rf"{size + ' ' if size else 'a '}{TRIGGER}" + (f" at the {place}" if place else "(?! at)")
        assert not re.search(asked, captions)


def test_prompts_of_the_demo_fit_the_text_length() -> None:
    tokens = build_t5_tokenizer()([*trigger_prompts(60), *SHOWN]).input_ids
    assert max(map(len, tokens)) <= LENGTH


def test_the_demo_pictures_are_what_the_recipe_paints(tmp_path: Path) -> None:
    write_demo(tmp_path)
    for fresh in tmp_path.glob("*.png"):
        pictures = [np.asarray(Image.open(file)) for file in (demo_folder() / fresh.name, fresh)]
        # Versions of Pillow differ in a pixel or two of an outline.
        assert np.mean(pictures[0] != pictures[1]) < 1e-4


@pytest.mark.parametrize(
    ("taken", "run"),
    [
        ([], "demo"),
        (["demo"], "demo-2"),
        (["demo-pictures"], "demo-2"),
        (["demo", "demo-2-pictures"], "demo-3"),
    ],
)
def test_the_demo_takes_a_number_that_is_free_for_the_run_and_for_its_pictures(
    tmp_path: Path, taken: list[str], run: str
) -> None:
    for name in taken:
        (tmp_path / name).mkdir()
    assert free_folders(tmp_path) == (tmp_path / run, tmp_path / f"{run}-pictures")


def test_the_demo_never_writes_into_a_folder_that_it_did_not_make(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        copy_pictures(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


GOOD = Scores(0.0, 0.8, 1.0, 0.97, 0.0, 60)


def test_the_demo_fails_when_the_subject_was_not_learned() -> None:
    assert not GOOD.shortfall
    assert "20%" in replace(GOOD, subject_after=0.2).shortfall


def test_the_demo_fails_when_ordinary_prompts_were_forgotten() -> None:
    assert "80%" in replace(GOOD, retention_after=0.8).shortfall


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> list[Scores]:
    """Of the demo trained with three seeds, each judged on pictures of a seed of its own."""
    from fluxtune.captioning.missing import caption_bare
    from fluxtune.config.layers import resolve
    from fluxtune.training.run import train

    folder = tmp_path_factory.mktemp("runs")
    reached = []
    for seed in (1, 2, 3):
        resolved = resolve(
            preset="nano",
            config_file=None,
            flags={"training.seed": ("--seed", seed)},
            sets=["previews.every=0", "checkpoints.every=0"],
            working_folder=folder,
        )
        result = train(resolved.config, output=folder / str(seed), caption_bare=caption_bare)
        reached.append(score_lora(model_folder(), result.file, [seed]))
    return reached


@pytest.mark.slow
def test_the_demo_teaches_the_subject(scores: list[Scores]) -> None:
    assert _mean([score.subject_before for score in scores]) < 0.05
    assert _mean([score.subject_after for score in scores]) >= 0.80


@pytest.mark.slow
def test_the_demo_keeps_what_the_base_model_could(scores: list[Scores]) -> None:
    before, after = (
        _mean([getattr(score, name) for score in scores]) for name in ("retention_before", "retention_after")
    )
    assert after >= before - 0.05


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
