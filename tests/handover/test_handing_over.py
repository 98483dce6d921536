"""What is written for another trainer and read again is what it was made of, but for the losses that are told."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import tomli
import yaml
from PIL import Image
from run_examples import photos

from fluxtune.config.layers import resolve
from fluxtune.config.presets import built_in_folder
from fluxtune.config.schema import Config
from fluxtune.config.settings import settings, values_of
from fluxtune.dataset.folder import list_folders
from fluxtune.errors import UsageError
from fluxtune.events import ignore
from fluxtune.handover.handing_over import HandedOver, hand_over
from fluxtune.handover.rules import reason
from fluxtune.handover.tables import with_tables
from fluxtune.handover.taking_over import take_over
from fluxtune.handover.targets import Target
from fluxtune.handover.trainers import TRAINERS
from fluxtune.runs import Run

PRESETS = sorted(file.stem for file in built_in_folder().glob("*.toml"))
WRITTEN_OUT = {"name", "lora.alpha", "previews.prompts", "previews.width", "previews.height", "previews.steps"}
"""Settings that are written out where they are unset, which is no loss."""


def run_of(folder: Path, preset: str | None = "24gb", **changes: Any) -> Config:
    """A run on plain pictures; ``changes`` have two underscores for a dot."""
    pictures = folder / "photos"
    if not pictures.is_dir():
        photos(pictures)
    sets = {key.replace("__", "."): ("--set", value) for key, value in changes.items()}
    flags: dict[str, tuple[str, object]] = {"dataset.folders": ("FOLDER", [{"path": str(pictures)}]), **sets}
    return resolve(preset=preset, config_file=None, flags=flags, sets=[], working_folder=folder).config


def same(one: object, other: object) -> bool:
    return one == pytest.approx(other) if isinstance(one, float) and isinstance(other, float) else one == other


def given_to(target: Target, config: Config, folder: Path) -> tuple[HandedOver, Config]:
    """A run that was handed over, and what it reads as then."""
    handed = hand_over(config, target, folder / f"for-{target}", ignore)
    return handed, take_over(Path(handed.settings), handed.settings).config


@pytest.mark.parametrize("target", Target)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_comes_back_as_it_was_but_for_the_losses_that_are_told(
    tmp_path: Path, preset: str, target: Target
) -> None:
    config = run_of(tmp_path, preset, dataset__trigger="zorvex")
    handed, back = given_to(target, config, tmp_path)
    told = {loss.key for loss in handed.losses}
    was, is_now = values_of(config), values_of(back)
    differing = {key for key in was if not same(was[key], is_now[key]) and key != "dataset.folders"}
    unset = {key for key in WRITTEN_OUT if not was[key]}
    assert differing - unset <= told
    # What stands beside the data set's file comes back, though the trainer does not see it.
    assert all(key.startswith("dataset.") for key in told - differing)


@pytest.mark.parametrize("target", Target)
def test_the_pictures_and_their_captions_come_back_too(tmp_path: Path, target: Target) -> None:
    config = run_of(tmp_path, dataset__trigger="zorvex")
    _, back = given_to(target, config, tmp_path)
    captions = [
        sorted(item.caption or "" for item in list_folders(each.dataset.folders).items) for each in (config, back)
    ]
    assert captions[0] == captions[1]


@pytest.mark.parametrize(
    ("target", "lost"),
    [
        (Target.AI_TOOLKIT, set()),
        (Target.SIMPLETUNER, {"weights"}),
        (Target.SD_SCRIPTS, {"weights"}),
        (Target.ONETRAINER, {"kinds"}),
        (Target.DIFFUSERS, {"repeats", "weights", "kinds", "masks"}),
    ],
)
def test_what_is_said_of_pictures_and_not_held_there_is_told(tmp_path: Path, target: Target, lost: set[str]) -> None:
    photos(tmp_path / "photos")
    photos(tmp_path / "others", 2)
    Image.new("L", (96, 80), 200).save(tmp_path / "photos" / "1-masklabel.png")
    rows = [
        {"path": str(tmp_path / "photos"), "repeats": 3, "weight": 0.5},
        {"path": str(tmp_path / "others"), "kind": "regularization"},
    ]
    handed, _ = given_to(target, run_of(tmp_path, dataset__folders=rows, dataset__class_word="dog"), tmp_path)
    told = {remark.split(" of pictures")[0] for remark in handed.remarks if "that it does not hold" in remark}
    assert told == lost


@pytest.mark.parametrize("target", [Target.AI_TOOLKIT, Target.SIMPLETUNER, Target.SD_SCRIPTS, Target.ONETRAINER])
def test_a_run_to_start_from_is_named_by_its_lora_which_other_trainers_read(tmp_path: Path, target: Target) -> None:
    start = Run.create(tmp_path / "start", "", {}, {})
    start.update(result="start.safetensors")
    handed, back = given_to(target, run_of(tmp_path, lora__init_from=str(start.folder)), tmp_path)
    assert back.lora.init_from == str(start.folder / "start.safetensors")
    assert "lora.init_from" not in {loss.key for loss in handed.losses}


def test_captions_hold_the_trigger_where_nothing_else_could_say_it(tmp_path: Path) -> None:
    config = run_of(tmp_path, dataset__trigger="qwrt")
    handed, _ = given_to(Target.ONETRAINER, config, tmp_path)
    texts = [file.read_text(encoding="utf-8") for file in sorted(Path(handed.destination).rglob("*.txt"))]
    assert texts == [f"qwrt, a zorvex, number {number}\n" for number in range(4)]
    handed, _ = given_to(Target.DIFFUSERS, config, tmp_path)
    (file,) = Path(handed.destination).rglob("metadata.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in rows] == [text.strip() for text in texts]


CHANGES: dict[str, Any] = {
    "lora__rank": 24,
    "lora__alpha": 12.0,
    "lora__targets": "attention+mlp",
    "training__steps": 900,
    "training__accumulation": 3,
    "training__batch_size": 2,
    "training__learning_rate": 3e-4,
    "training__warmup": 12,
    "training__weight_decay": 0.05,
    "training__max_grad_norm": 0.5,
    "training__guidance": 2.0,
    "training__seed": 5,
    "checkpoints__every": 90,
    "previews__every": 45,
    "previews__seeds": [4],
    "previews__guidance": 3.0,
    "dataset__caption_dropout": 0.2,
    "dataset__resolution": [512],
}


@pytest.mark.parametrize("target", Target)
def test_settings_that_every_trainer_has_are_the_same_there(tmp_path: Path, target: Target) -> None:
    handed, _ = given_to(target, run_of(tmp_path, **CHANGES), tmp_path)
    lost = {loss.key for loss in handed.losses if loss.learned}
    known = {
        Target.AI_TOOLKIT: set(),
        Target.SIMPLETUNER: set(),
        Target.SD_SCRIPTS: set(),
        # it has no seed of its own
        Target.ONETRAINER: {"training.seed"},
        Target.DIFFUSERS: {"dataset.caption_dropout", "dataset.buckets"},
    }
    of_noise = {"training.timestep_sampling", "training.logit_mean", "training.logit_std"}
    assert lost - of_noise == known[target]


@pytest.mark.parametrize("target", Target)
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_learning_rate_does_there_what_it_does_here(tmp_path: Path, target: Target, schedule: str) -> None:
    handed, back = given_to(target, run_of(tmp_path, training__schedule=schedule, training__steps=50), tmp_path)
    assert back.training.schedule == schedule
    assert not {"training.schedule", "training.warmup"} & {loss.key for loss in handed.losses}


def test_ai_toolkit_is_told_that_a_linear_schedule_falls(tmp_path: Path) -> None:
    handed, _ = given_to(Target.AI_TOOLKIT, run_of(tmp_path, training__schedule="linear"), tmp_path)
    train = yaml.safe_load(Path(handed.settings).read_text(encoding="utf-8"))["config"]["process"][0]["train"]
    assert train["lr_scheduler_params"] == {"start_factor": 1.0, "end_factor": 0.0}


def test_a_warm_up_that_a_trainer_has_not_is_told(tmp_path: Path) -> None:
    config = run_of(tmp_path, training__schedule="cosine", training__warmup=20)
    handed, _ = given_to(Target.AI_TOOLKIT, config, tmp_path)
    (loss,) = [loss for loss in handed.losses if loss.key == "training.warmup"]
    assert (loss.value, loss.becomes, loss.learned) == (20, 0, True)
    assert str(loss).startswith("training.warmup = 20 becomes 0: ")


def test_onetrainer_trains_the_epochs_that_have_the_steps(tmp_path: Path) -> None:
    config = run_of(tmp_path, training__steps=101, training__accumulation=2)
    handed, back = given_to(Target.ONETRAINER, config, tmp_path)
    written = json.loads(Path(handed.settings).read_text(encoding="utf-8"))
    # four pictures are two optimizer steps of two
    assert (written["epochs"], back.training.steps) == (51, 102)
    assert (written["sample_after"], written["sample_after_unit"]) == (500, "STEP"), "its steps are micro-batches"


@pytest.mark.parametrize("target", Target)
def test_nothing_is_written_over_and_nothing_by_halves(tmp_path: Path, target: Target) -> None:
    config = run_of(tmp_path)
    hand_over(config, target, tmp_path / "there", ignore)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UsageError, match="this is there already"):
        hand_over(config, target, tmp_path / "there", ignore)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_run_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no pictures to hand over"):
        hand_over(Config(), Target.AI_TOOLKIT, tmp_path / "there", ignore)


@pytest.mark.parametrize("target", Target)
def test_the_command_names_the_file_that_was_written(tmp_path: Path, target: Target) -> None:
    folder = tmp_path / "it's here"
    handed, _ = given_to(target, run_of(tmp_path), folder)
    words = shlex.split(handed.command)
    named = [word.removeprefix("ENV=") for word in words if str(folder) in word]
    assert len(named) == 1
    assert Path(named[0]).exists()


def test_sd_scripts_is_told_of_the_files_that_it_wants(tmp_path: Path) -> None:
    config = run_of(tmp_path, model__transformer=str(tmp_path / "flux1-dev.safetensors"))
    handed, _ = given_to(Target.SD_SCRIPTS, config, tmp_path)
    assert tomli.loads(Path(handed.settings).read_text())["pretrained_model_name_or_path"].endswith(
        "flux1-dev.safetensors"
    )
    (to_do,) = handed.to_do
    assert "ae.safetensors" in to_do
    assert "flux1-dev" not in to_do


@pytest.mark.parametrize("name", TRAINERS)
def test_every_setting_has_a_row_or_a_word_on_what_is_done_without_it(name: str) -> None:
    trainer = TRAINERS[name]
    written = {key for rule in trainer.rules for key in rule.ours}
    for key, setting in settings().items():
        if not setting.in_row and key != "dataset.folders":
            assert key in written or reason(trainer.without, key), key
    assert written <= settings().keys()
    assert all(reason(trainer.without, key) != "" for key in settings())


@pytest.mark.parametrize("name", TRAINERS)
def test_no_key_is_said_to_be_of_no_matter_that_a_row_reads(name: str) -> None:
    trainer = TRAINERS[name]
    read = {key for rule in trainer.rules for key in rule.theirs}
    told = {each.theirs for each in trainer.fixed if each.otherwise}
    assert not (read | told) & set(trainer.technical)
    assert not set(trainer.meanings) & set(trainer.technical)


def test_the_tables_of_the_docs_are_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "moving.md"
    text = page.read_text(encoding="utf-8")
    assert text == with_tables(text), "run `python -m fluxtune.handover.tables docs/moving.md`"
