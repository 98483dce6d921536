"""Settings of other trainers, as people have them, become those of ours that mean the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli
from run_examples import AI_TOOLKIT, DIFFUSERS, photos, write_all

from fluxtune.config.layers import resolve
from fluxtune.config.settings import look_up
from fluxtune.handover.taking_over import TakenOver, settings_text, take_over

WANTED: dict[str, dict[str, Any]] = {
    "ai-toolkit": {
        "name": "zorvex_flux_v2",
        "model.base": "black-forest-labs/FLUX.1-dev",
        "dataset.trigger": "zorvex",
        "dataset.resolution": [512, 768],
        "dataset.caption_dropout": 0.1,
        "lora.rank": 32,
        "lora.alpha": 16.0,
        "lora.targets": ["*single_transformer_blocks.7.proj_out*", "*single_transformer_blocks.20.proj_out*"],
        "training.steps": 1000,
        "training.accumulation": 3,
        "training.batch_size": 2,
        "training.learning_rate": 4e-4,
        "training.schedule": "constant",
        "training.optimizer": "adamw-8bit",
        "training.timestep_sampling": "flux-shift",
        "training.logit_std": 1.7,
        "training.ema_decay": 0.99,
        "training.guidance": 1.0,
        "memory.base_precision": "int8-weights",
        "memory.text_precision": "fp8",
        "memory.recompute": "all",
        "checkpoints.every": 200,
        "checkpoints.keep": 6,
        "checkpoints.dtype": "fp16",
        "previews.every": 250,
        "previews.prompts": ["a zorvex in a boat", "a zorvex at the sea"],
        "previews.seeds": [7],
        "previews.steps": 24,
        "previews.guidance": 4.0,
        "previews.width": 768,
        "previews.height": 1024,
    },
    "simpletuner": {
        "dataset.resolution": [1024],
        "dataset.caption_dropout": 0.05,
        "lora.targets": "attention+mlp",
        "lora.dropout": 0.1,
        # four pictures, each five times, are ten optimizer steps of two in an epoch
        "training.steps": 100,
        "training.accumulation": 2,
        "training.learning_rate": 8e-5,
        "training.schedule": "linear",
        "training.warmup": 5,
        "training.optimizer": "adamw-8bit",
        "training.weight_decay": 0.02,
        "training.max_grad_norm": 1.0,
        "training.timestep_sampling": "flux-shift",
        "training.logit_std": 1.0,
        "training.seed": 1234,
        "memory.base_precision": "nf4",
        "checkpoints.every": 100,
        "checkpoints.keep": 4,
        "previews.prompts": ["a photo of zorvex"],
        "previews.seeds": [3],
        "previews.width": 1024,
        "previews.height": 768,
    },
    "sd-scripts": {
        "name": "zorvex",
        "dataset.resolution": [768],
        "dataset.buckets": True,
        "lora.rank": 16,
        "lora.alpha": 8.0,
        "lora.targets": "attention+mlp",
        # four pictures, each five times, are ten batches of two in an epoch
        "training.steps": 60,
        "training.batch_size": 2,
        "training.learning_rate": 2e-4,
        "training.schedule": "cosine",
        "training.warmup": 4,
        "training.weight_decay": 0.1,
        "training.timestep_sampling": "shift",
        "training.shift": 3.1582,
        "memory.base_precision": "fp8",
        "checkpoints.every": 20,
        "checkpoints.keep": 2,
        "previews.every": 500,
        "previews.prompts": ["a zorvex", "a boat"],
        "previews.seeds": [5, 6],
        "previews.width": 768,
        "previews.height": 512,
        "previews.guidance": 3.0,
    },
    "onetrainer": {
        "name": "zorvex",
        "dataset.resolution": [512, 768],
        "dataset.flip": True,
        "dataset.caption_dropout": 0.1,
        "lora.rank": 8,
        "lora.alpha": 4.0,
        "lora.targets": "attention",
        # four pictures, each three times, are six batches, and three optimizer steps in an epoch
        "training.steps": 60,
        "training.batch_size": 2,
        "training.accumulation": 2,
        "training.warmup": 10,
        "training.schedule": "cosine",
        "training.optimizer": "adamw-8bit",
        "training.timestep_sampling": "shift",
        "training.shift": 1.8,
        "training.logit_mean": 0.5,
        "training.logit_std": 1.25,
        "training.ema_decay": 0.99,
        "memory.base_precision": "nf4",
        "memory.text_precision": "nf4",
        "checkpoints.every": 50,
        "checkpoints.dtype": "bf16",
        "previews.every": 25,
        "previews.prompts": ["a zorvex"],
    },
    "diffusers": {
        "name": "trained-zorvex",
        "dataset.resolution": [512],
        "dataset.buckets": False,
        "dataset.caption_dropout": 0.0,
        "lora.targets": [
            "*attn.to_[qkv]", "*attn.to_out.0", "*attn.add_[qkv]_proj", "*attn.to_add_out", "*ff.net.0.proj",
            "*ff.net.2", "*ff_context.net.0.proj", "*ff_context.net.2",
        ],
        "training.steps": 500,
        "training.accumulation": 4,
        "training.learning_rate": 1.0,
        "training.optimizer": "adamw",
        "training.weight_decay": 1e-4,
        "training.timestep_sampling": "logit-normal",
        "training.logit_mean": 0.5,
        "training.guidance": 1.0,
        "training.seed": 0,
        "checkpoints.every": 500,
        # an epoch of four pictures is one step of four
        "previews.every": 25,
        "previews.prompts": ["A photo of zorvex dog in a bucket"],
    },
}  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return write_all(tmp_path)


def line_of(file: Path, text: str) -> str:
    """Where a text stands in a file."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return f"{file.name}:{next(number for number, line in enumerate(lines, start=1) if text in line)}"


def warnings_of(taken: TakenOver) -> str:
    return "\n".join(f"{remark.where}: {remark.message}" for remark in taken.remarks if remark.severity == "warning")


@pytest.mark.parametrize("trainer", WANTED)
def test_settings_become_what_they_mean(files: dict[str, Path], trainer: str) -> None:
    taken = take_over(files[trainer], files[trainer].name)
    plain = taken.config.model_dump()
    assert {key: look_up(plain, key) for key in WANTED[trainer]} == WANTED[trainer]
    assert [folder.path for folder in taken.config.dataset.folders] == [str(files[trainer].parent / "photos")]


@pytest.mark.parametrize("trainer", WANTED)
def test_what_is_written_reads_as_the_same_settings(files: dict[str, Path], tmp_path: Path, trainer: str) -> None:
    taken = take_over(files[trainer], files[trainer].name)
    (tmp_path / "ours.toml").write_text(settings_text(taken, files[trainer].name), encoding="utf-8")
    again = resolve(
        preset=None, config_file=tmp_path / "ours.toml", flags={}, sets=[], working_folder=tmp_path, data_sets=False
    )
    one, two = taken.config.model_dump(), again.config.model_dump()
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        # Names of files are relative to the TOML.
        assert Path(two["model"].pop(part) or "").name == Path(one["model"].pop(part) or "").name
    assert two == one


@pytest.mark.parametrize(
    ("trainer", "lost"),
    [
        ("ai-toolkit", {"shuffle_tokens: true": "captions keep their order"}),
        (
            "simpletuner",
            {"--lr_scheduler": "its power and its end", "optimizer_config": "betas=0.9 of", "snr_gamma": "count alike"},
        ),
        ("sd-scripts", {"lr_scheduler = ": "there are no restarts here", "min_snr_gamma": "losses count alike"}),
        ("onetrainer", {"enable_crop_jitter": "dataset.crops"}),
        ("diffusers", {"--optimizer": "prodigy has no counterpart here"}),
    ],
)
def test_what_cannot_be_taken_over_is_told_with_its_line(
    files: dict[str, Path], trainer: str, lost: dict[str, str]
) -> None:
    file = files[trainer]
    told = [remark for remark in take_over(file, file.name).remarks if remark.severity == "warning"]
    places = {remark.where: remark.message for remark in told}
    assert set(places) == {line_of(file, key) for key in lost}
    assert all(message in places[line_of(file, key)] for key, message in lost.items())


def test_a_setting_without_a_value_is_what_the_trainer_takes_by_default(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    text = "\n".join(line for line in AI_TOOLKIT.splitlines() if "lr: 4e-4" not in line and "linear_alpha" not in line)
    (tmp_path / "job.yaml").write_text(text, encoding="utf-8")
    taken = take_over(tmp_path / "job.yaml", "job.yaml")
    assert (taken.config.training.learning_rate, taken.config.lora.alpha) == (1e-6, 1.0)
    written = settings_text(taken, "job.yaml")
    assert "learning_rate = 1e-06  # by default in ai-toolkit" in written
    assert tomli.loads(written)["training"]["learning_rate"] == 1e-6


def test_each_setting_has_its_key_and_line_beside_it(files: dict[str, Path]) -> None:
    file = files["ai-toolkit"]
    written = settings_text(take_over(file, file.name), file.name)
    for setting, key in (("rank = 32", "linear:"), ("guidance = 4.0", "guidance_scale:"), ("seeds = [7]", "seed:")):
        line = line_of(file, f" {key}").partition(":")[2]
        assert f"{setting}  # " in written
        assert f"{key.rstrip(':')}, line {line}\n" in written.split(f"{setting}  # ")[1].split("\n")[0] + "\n"


def test_simpletuners_environment_is_read(tmp_path: Path) -> None:
    lines = ["export MODEL_TYPE=lora", "export MODEL_FAMILY='flux'", "export MAX_NUM_STEPS=700", "LR_SCHEDULE=sine",
             'export LEARNING_RATE="1e-5"  # low', "export TRAINING_SEED=9",
             'export TRAINER_EXTRA_ARGS="${TRAINER_EXTRA_ARGS} --lora_rank=64 --flux_lora_target=all+ffs"']  # fmt: skip
    (tmp_path / "config.env").write_text("\n".join(lines), encoding="utf-8")
    taken = take_over(tmp_path / "config.env", "config.env")
    assert (taken.config.training.steps, taken.config.training.learning_rate) == (700, 1e-5)
    assert taken.config.training.seed == 9
    assert (taken.config.lora.rank, taken.config.lora.targets) == (64, "attention+mlp")
    assert "config.env:4: sine takes lr_warmup_steps" in warnings_of(taken)


def test_a_command_for_windows_is_read_as_one_for_a_shell(tmp_path: Path) -> None:
    text = "accelerate launch ^\r\n  C:\\sd\\flux_train_network.py ^\r\n  --network_module=networks.lora_flux ^\r\n"
    text += '  --network_dim 4 --output_name "my lora" ^\r\n  --train_data_dir D:\\photos --resolution 512,512\r\n'
    (tmp_path / "train.bat").write_text(text, encoding="utf-8", newline="")
    taken = take_over(tmp_path / "train.bat", "train.bat")
    assert (taken.config.lora.rank, taken.config.name) == (4, "my lora")
    assert taken.config.dataset.folders[0].path.endswith("D:\\photos")
    assert taken.config.dataset.resolution == [512]


def test_what_a_script_does_not_say_is_told_and_nothing_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    text = DIFFUSERS.replace('"trained-zorvex"', f'"$(touch {mark})"').replace('--seed="0"', "--seed=0 --rank=$RANK")
    (tmp_path / "train.sh").write_text(text.replace("--rank=16 ", ""), encoding="utf-8")
    with pytest.raises(Exception, match=r"rank is \"\$RANK\": wanted a whole number"):
        take_over(tmp_path / "train.sh", "train.sh")
    assert not mark.exists()


def test_files_beside_those_of_the_trainer_are_found_from_where_it_runs(tmp_path: Path) -> None:
    files = write_all(tmp_path / "trainer")
    inner = tmp_path / "trainer" / "simpletuner" / "config" / "mine"
    inner.mkdir(parents=True)
    text = files["simpletuner"].read_text(encoding="utf-8")
    moved = inner / "config.json"
    moved.write_text(text, encoding="utf-8")
    assert take_over(moved, "config.json").config.dataset.folders[0].repeats == 5


def test_masks_count_where_the_trainer_looks_at_them(tmp_path: Path) -> None:
    file = write_all(tmp_path)["onetrainer"]
    assert take_over(file, file.name).config.dataset.folders[0].masks == "none"
    text = file.read_text(encoding="utf-8").replace('"masked_training": false', '"masked_training": true')
    file.write_text(text, encoding="utf-8")
    assert take_over(file, file.name).config.dataset.folders[0].masks == "auto"


def test_a_token_in_a_script_is_not_written_down(tmp_path: Path) -> None:
    token = "hf_" + "abcdefghij" * 3
    photos(tmp_path / "photos")
    (tmp_path / "train.sh").write_text(DIFFUSERS.replace("--push_to_hub", f"--secret={token}"), encoding="utf-8")
    taken = take_over(tmp_path / "train.sh", "train.sh")
    assert any("secret = " in remark.message for remark in taken.remarks)
    assert token not in settings_text(taken, "train.sh")


NASTY = ['a "quoted" \\ back', "line\nbreak", "tab\tand \u2028", "'''", "ü 漢 🟫", "# no comment", "\x7f"]


def test_prompts_of_any_letters_come_through(tmp_path: Path) -> None:
    import json

    file = write_all(tmp_path)["onetrainer"]
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["samples"] = [{"enabled": True, "prompt": prompt} for prompt in NASTY]
    file.write_text(json.dumps(settings), encoding="utf-8")
    written = settings_text(take_over(file, file.name), file.name)
    assert tomli.loads(written)["previews"]["prompts"] == NASTY
