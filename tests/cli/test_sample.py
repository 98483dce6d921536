"""What `fluxtune sample` understands, before any picture is painted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fluxtune.cli.sample.asked import request_of
from fluxtune.cli.sample.effect import require_effect
from fluxtune.cli.sample.settings import Given
from fluxtune.cli.sample.settings import resolved as resolve_for_sampling
from fluxtune.config.layers import Resolved, resolve, to_toml
from fluxtune.lora.use import LoraUse, lora_use
from fluxtune.runs import Run
from fluxtune.sampling.axes import read_axis
from fluxtune.sampling.layout import laid_out
from fluxtune.sampling.prompts import PromptRow

BASE_FOLDER = "bases/mine"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A finished run on a local base model, as far as settings go."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / BASE_FOLDER).mkdir(parents=True)
    sets = [
        f"model.base={BASE_FOLDER}",
        "memory.base_precision=int8",
        "memory.text_precision=nf4",
        "dataset.folders=[{path = 'photos'}]",
        "dataset.resolution=512",
        "dataset.trigger=zorvex",
        "training.steps=50",
        "previews.steps=11",
    ]
    config = resolve(preset=None, config_file=None, flags={}, sets=sets, working_folder=tmp_path).config
    made = Run.create(tmp_path / "runs" / "mug", to_toml(config), {}, {})
    made.result_path("mug").touch()
    return made


def resolved(run: Run, preset: str | None = None, flags: dict[str, Any] | None = None) -> Resolved:
    return resolve_for_sampling(Given(preset, None, flags or {}, []), [Path("runs/mug/mug.safetensors")])


def test_a_runs_settings_come_along_and_name_the_run(run: Run, tmp_path: Path) -> None:
    made = resolved(run)
    assert made.config.model.base == str(tmp_path / BASE_FOLDER)
    assert (made.config.memory.text_precision, made.config.previews.steps) == ("nf4", 11)
    for key in ("model.base", "memory.base_precision", "previews.steps", "dataset.resolution"):
        assert made.origins[key].startswith(f"{Path('runs/mug/config.toml')}:")


def test_a_preset_changes_only_what_it_sets_of_a_runs_settings(run: Run, tmp_path: Path) -> None:
    made = resolved(run, preset="48gb")
    assert made.config.model.base == str(tmp_path / BASE_FOLDER)
    assert made.origins["model.base"].startswith(str(Path("runs/mug/config.toml")))
    assert (made.config.memory.base_precision, made.config.dataset.resolution) == ("bf16", [1024])
    assert made.config.previews.steps == 11


def test_the_users_file_changes_only_what_it_sets_of_a_runs_settings(run: Run, tmp_path: Path) -> None:
    # As long as the whole run of 50 steps: that is of no concern to a picture.
    (tmp_path / "fluxtune.toml").write_text("memory.base_precision = 'nf4'\ntraining.warmup = 50\n", encoding="utf-8")
    made = resolved(run)
    assert made.config.model.base == str(tmp_path / BASE_FOLDER)
    assert (made.config.memory.base_precision, made.config.memory.text_precision) == ("nf4", "nf4")
    assert made.origins["memory.base_precision"] == "fluxtune.toml:1"


def test_a_flag_is_above_a_runs_settings(run: Run) -> None:
    made = resolved(run, flags={"model.base": ("--base", "org/model")})
    assert (made.config.model.base, made.origins["model.base"]) == ("org/model", "--base")


def test_a_run_on_the_embedded_model_keeps_its_own_preview_prompts(run: Run, tmp_path: Path) -> None:
    shutil.rmtree(run.folder)
    sets = ["previews.prompts=['a zorvex']", "previews.steps=3"]
    config = resolve(preset="nano", config_file=None, flags={}, sets=sets, working_folder=tmp_path).config
    Run.create(run.folder, to_toml(config), {}, {}).result_path("mug").touch()
    made = resolved(run)
    assert (made.config.previews.prompts, made.config.previews.steps) == (["a zorvex"], 3)
    assert (made.config.model.base, made.config.memory.base_precision) == ("nano", "fp32")


@pytest.mark.parametrize("seed", ["", "-1", "9223372036854775808", "many", "1.5"])
def test_a_seed_out_of_range_is_a_usage_error(fluxtune: Callable, seed: str) -> None:
    outcome = fluxtune("sample", "a cup", "--seed", seed)
    assert outcome.code == 2
    assert outcome.err.startswith("error: --seed: previews.seeds has ")


@pytest.mark.parametrize("scale", ["nan", "inf", "-inf", "1e999"])
def test_a_scale_that_is_no_finite_number_is_a_usage_error(fluxtune: Callable, scale: str) -> None:
    outcome = fluxtune("sample", "a cup", "--lora", f"f.safetensors:{scale}")
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: --lora: {scale!r} is no scale: wanted a finite number\n")


@pytest.mark.parametrize(
    ("flag", "key"),
    [
        ("--base", "model.base"),
        ("--steps", "previews.steps"),
        ("--guidance", "previews.guidance"),
        ("--width", "previews.width"),
        ("--height", "previews.height"),
    ],
)
def test_a_flag_with_an_empty_value_is_refused_by_sample(fluxtune: Callable, flag: str, key: str) -> None:
    outcome = fluxtune("sample", "a cup", flag, "")
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {flag}: {key} ")


def test_a_file_without_a_prompt_is_a_usage_error(fluxtune: Callable, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n  \n", encoding="utf-8")
    outcome = fluxtune("sample", "--prompts", "prompts.txt", "--base", "nano")
    assert outcome.code == 2
    assert outcome.err.startswith("error: prompts.txt: there is no prompt in this file\n")


def test_a_file_of_prompts_that_is_not_there_is_a_usage_error(fluxtune: Callable) -> None:
    outcome = fluxtune("sample", "--prompts", "gone.txt", "--base", "nano")
    assert outcome.code == 2
    assert outcome.err.startswith("error: gone.txt: cannot read the file: no such file or directory\n")


def test_a_size_given_in_both_ways_is_a_usage_error(fluxtune: Callable) -> None:
    outcome = fluxtune("sample", "a cup", "--size", "128x128", "--width", "64")
    assert outcome.code == 2
    assert outcome.err.startswith("error: --size: --size gives both sides already\n")


def test_the_folder_of_a_checkpoint_stands_for_its_lora(run: Run) -> None:
    checkpoint = run.folder / "checkpoints" / "step-000500"
    (checkpoint / "state").mkdir(parents=True)
    (checkpoint / "manifest.json").touch()
    (checkpoint / "mug.safetensors").touch()
    assert lora_use(f"{checkpoint}:0.5") == LoraUse(checkpoint / "mug.safetensors", 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a cup", "--strength", "0.5"], "error: --strength: strength is how much of a start picture"),
        (["a cup", "--set", "sampling.strength=0.5"], "error: --set: strength is how much of a start picture"),
        (["a cup", "--grid", "strength=0.2,0.4"], "error: --grid strength: strength is how much of a start picture"),
        (["a cup", "--true-guidance", "3"], "error: --true-guidance: true guidance leads away from a negative prompt"),
        (["a cup", "--grid", "true-guidance=2,3"], "error: --grid true-guidance: true guidance leads away"),
        (["a cup", "--quality", "80"], "error: --quality: a PNG loses nothing"),
        (["a cup", "--grid", "prompt=a|b"], "error: --grid: PROMPT would have no effect beside the axis prompt"),
        (["--prompts", "p.txt", "--grid", "prompt=a|b"], "error: --grid: --prompts would have no effect beside"),
        (
            ["a cup", "-n", "2", "--grid", "seed=1,2"],
            "error: --grid: --count would have no effect beside the axis seed",
        ),
        (["a cup", "--seed", "2", "--grid", "seed=1,2"], "error: --grid: --seed would have no effect beside the axis"),
        (["a cup", "--size", "64x64", "--grid", "size=96x64"], "error: --grid: --size would have no effect beside"),
        (["--prompts", "counts.jsonl", "--grid", "seed=1,2"], "error: --grid: count of a prompt would have no effect"),
    ],
)
def test_what_would_change_nothing_is_refused(
    fluxtune: Callable, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "p.txt").write_text("a cup\n")
    (tmp_path / "counts.jsonl").write_text(json.dumps({"prompt": "a cup", "count": 2}))
    outcome = fluxtune("sample", "--base", "nano", *arguments)
    assert outcome.code == 2
    assert outcome.err.startswith(message)
    assert "\nhint: " in outcome.err


@pytest.mark.parametrize(
    ("flags", "changes"),
    [
        ({"sampling.strength": ("--strength", 0.5)}, {"start": Path("s.png")}),
        ({"sampling.strength": ("--strength", 0.5)}, {"prompts": [PromptRow(prompt="a", start="s.png")]}),
        (
            {"sampling.true_guidance": ("--true-guidance", 3.0)},
            {"prompts": [PromptRow(prompt="a", negative_prompt="")]},
        ),
        ({"sampling.true_guidance": ("--true-guidance", 3.0)}, {"axes": (read_axis("negative-prompt=a|b", ()),)}),
        ({}, {}),
    ],
)
def test_what_changes_something_is_not_refused(tmp_path: Path, flags: dict[str, Any], changes: dict[str, Any]) -> None:
    sets = ["sampling.strength=0.3", "sampling.true_guidance=4", "sampling.quality=50"]
    resolved = resolve(preset="nano", config_file=None, flags=flags, sets=sets, working_folder=tmp_path)
    usual = {"prompts": [PromptRow(prompt="a")], "count": None, "output": tmp_path}
    named = {key: flag for key, (flag, _) in flags.items()}
    require_effect(request_of(resolved, **{**usual, **changes}), named, {"PROMPT": None, "--count": None})


def test_seeds_that_are_counted_past_the_last_are_a_usage_error(fluxtune: Callable) -> None:
    outcome = fluxtune("sample", "a cup", "--base", "nano", "--seed", str(2**63 - 1), "--count", "2")
    assert outcome.code == 2
    assert outcome.err.startswith("error: --count: 2 seeds from 9223372036854775807 on go past the last")


@pytest.mark.parametrize("prompt", ["", " "])
def test_a_blank_prompt_is_a_usage_error(fluxtune: Callable, prompt: str) -> None:
    outcome = fluxtune("sample", prompt, "--base", "nano")
    assert outcome.code == 2
    assert outcome.err.startswith(f'error: PROMPT: prompt is "{prompt}": wanted text that is not blank')


@pytest.mark.parametrize("prompt", ["a {red|blue} __cup__", r"\{a|b\}", ""])
def test_preview_prompts_of_the_settings_are_taken_as_training_previews_take_them(prompt: str, tmp_path: Path) -> None:
    sets = [f"previews.prompts=[{json.dumps(prompt)}]"]
    resolved = resolve(preset="nano", config_file=None, flags={}, sets=sets, working_folder=tmp_path)
    pictures, _ = laid_out(request_of(resolved, prompts=(), count=20, output=tmp_path))
    assert {each.prompt for each in pictures} == {prompt}
