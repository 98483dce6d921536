from __future__ import annotations

import os
from pathlib import Path

import pytest

from fluxtune.config.layers import resolve
from fluxtune.config.presets import Preset, built_in_folder, find, listing
from fluxtune.config.schema import Config
from fluxtune.errors import ConfigError, UsageError

TIERS = {
    # preset: base precision, resolution, batch size
    "6gb": ("nf4", 512, 1),
    "8gb": ("nf4", 1024, 1),
    "12gb": ("int8", 1024, 1),
    "16gb": ("int8", 1024, 1),
    "24gb": ("int8", 1024, 1),
    "24gb-bf16": ("bf16", 1024, 1),
    "48gb": ("bf16", 1024, 1),
    "80gb": ("bf16", 1024, 2),
}


def load(name: str, folder: Path) -> Config:
    return resolve(preset=name, config_file=None, flags={}, sets=[], working_folder=folder).config


def own_preset(name: str, content: str) -> Path:
    folder = Path(os.environ["FLUXTUNE_CONFIG"]) / "presets"
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.toml"
    file.write_text(content, encoding="utf-8")
    return file


def test_the_presets_that_ship_are_in_order_from_small_to_large() -> None:
    assert [preset.name for preset in listing()] == ["nano", *TIERS]


@pytest.mark.parametrize("name", TIERS)
def test_a_tier_leaves_the_plan_to_the_card_and_says_how_much_of_it_there_is(name: str, tmp_path: Path) -> None:
    config = load(name, tmp_path)
    seen = (config.memory.base_precision, config.dataset.resolution[0], config.training.batch_size)
    assert seen == TIERS[name]
    assert config.model.base == "black-forest-labs/FLUX.1-dev"
    size = int(name.partition("gb")[0])
    assert config.memory.budget is not None
    assert 0.9 * size <= config.memory.budget <= size
    assert (config.memory.recompute, config.memory.modulation, config.memory.text_precision) == ("auto",) * 3


def test_nano_runs_the_embedded_model_in_float32(tmp_path: Path) -> None:
    config = load("nano", tmp_path)
    assert (config.model.base, config.dataset.resolution) == ("nano", [128])
    assert (config.memory.base_precision, config.training.precision) == ("fp32", "fp32")


@pytest.mark.parametrize("preset", listing(), ids=lambda preset: preset.name)
def test_a_preset_begins_with_a_comment_for_its_reader(preset: Preset) -> None:
    comment = [line for line in preset.file.read_text(encoding="utf-8").split("\n") if line.startswith("#")]
    assert len(comment) >= 4
    assert preset.description.endswith(".")


def test_a_preset_of_the_user_is_found_by_name(tmp_path: Path) -> None:
    file = own_preset("mine", "# For my card.\nlora.rank = 5\n")
    assert load("mine", tmp_path).lora.rank == 5
    assert find("mine", tmp_path) == Preset("mine", file, str(file), "yours")
    assert find("mine", tmp_path).description == "For my card."


def test_a_preset_of_the_user_hides_a_built_in_one(tmp_path: Path) -> None:
    own_preset("24gb", "lora.rank = 5\n")
    assert load("24gb", tmp_path).lora.rank == 5
    assert [preset.kind for preset in listing() if preset.name == "24gb"] == ["yours"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_what_cannot_be_read_is_no_preset(tmp_path: Path) -> None:
    folder = own_preset("mine", "# For my card.\n").parent
    (folder / "24gb.toml").symlink_to(tmp_path / "gone.toml")
    (folder / "folder.toml").mkdir()
    assert [preset.name for preset in listing() if preset.kind == "yours"] == ["mine"]
    assert find("24gb", tmp_path).kind == "built-in"


def test_the_preset_of_a_user_who_does_not_exist_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load("~nouser/x.toml", tmp_path)
    (problem,) = caught.value.problems
    assert (problem.where, problem.message[:20]) == ("~nouser/x.toml", "cannot read the file")


@pytest.mark.parametrize("wanted", ["card.toml", "./card.toml"])
def test_a_preset_is_found_by_path(wanted: str, tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_text("lora.rank = 6\n", encoding="utf-8")
    made = resolve(preset=wanted, config_file=None, flags={}, sets=[], working_folder=tmp_path)
    assert (made.config.lora.rank, made.origins["lora.rank"]) == (6, f"preset card ({wanted}:1)")


@pytest.mark.parametrize(("wanted", "meant"), [("24g", "24gb"), ("NANO", "nano"), ("12-gb", "12gb")])
def test_an_unknown_preset_is_told_the_nearest(wanted: str, meant: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no preset") as caught:
        find(wanted, tmp_path)
    assert caught.value.hint == f"did you mean {meant}?"


def test_an_unknown_preset_near_none_is_sent_to_the_list(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        find("qqqqqq", tmp_path)
    assert caught.value.hint == "`fluxtune presets` lists what each is for"


def test_the_presets_lie_beside_the_package_in_a_checkout() -> None:
    assert (built_in_folder() / "nano.toml").is_file()
