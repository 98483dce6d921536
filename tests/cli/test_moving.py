"""`fluxtune export config` and `fluxtune import config`: what people read, what programs read, and the exit codes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli
from PIL import Image

Fluxtune = Callable[..., Any]

TARGETS = ("ai-toolkit", "simpletuner", "sd-scripts", "onetrainer", "diffusers")
SETTINGS = {
    "ai-toolkit": "ai-toolkit.yaml",
    "simpletuner": "config.json",
    "sd-scripts": "sd-scripts.toml",
    "onetrainer": "onetrainer.json",
    "diffusers": "train.sh",
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        Image.linear_gradient("L").rotate(90 * number).resize((128, 96 + 16 * number)).convert("RGB").save(
            folder / f"{number}.png"
        )
        (folder / f"{number}.txt").write_text(f"a zorvex, number {number}")
    return folder


def test_people_read_what_differs_and_programs_the_command(fluxtune: Fluxtune, photos: Path) -> None:
    outcome = fluxtune("export", "config", "photos", "--preset", "24gb", "--to", "ai-toolkit", "-o", "there")
    assert outcome.code == 0
    assert outcome.out == f"python run.py {photos.parent}/there/ai-toolkit.yaml\n"
    told = outcome.err.splitlines()
    assert "there: 3 pictures and the settings for ai-toolkit: there/ai-toolkit.yaml" in told
    learned = told[told.index("what is learned differs by:") + 1 : told.index("besides:")]
    assert [line.split(" = ")[0].strip() for line in learned] == ["training.logit_std"]
    assert any("memory.budget = 22.5" in line and "no counterpart" in line for line in told)
    assert told[-1] == "what starts it, where ai-toolkit is installed:"


def test_for_programs_the_last_line_is_the_result(fluxtune: Fluxtune, photos: Path) -> None:
    arguments = ("export", "config", "photos", "--to", "onetrainer", "-o", "there", "--json", "--steps", "10")
    result = fluxtune(*arguments).records()[-1]
    assert (result["event"], result["command"]) == ("result", "export config")
    losses = {loss["key"]: loss for loss in result["data"]["losses"]}
    assert losses["training.steps"]["value"] == 10
    assert losses["training.steps"]["becomes"] == 12
    assert result["data"]["command"].startswith("python scripts/train.py --config-path ")


@pytest.mark.parametrize(
    "target",
    [target if target == "simpletuner" else pytest.param(target, marks=pytest.mark.slow) for target in TARGETS],
)
def test_a_run_goes_there_and_back_and_is_planned_as_before(fluxtune: Fluxtune, photos: Path, target: str) -> None:
    flags = ("--preset", "nano", "--steps", "30", "--trigger", "zorvex", "--set", "training.preservation.method=none")
    assert fluxtune("export", "config", "photos", *flags, "--to", target, "-o", "there").code == 0
    outcome = fluxtune("import", "config", f"there/{SETTINGS[target]}", "-o", "back.toml")
    assert (outcome.code, outcome.out) == (0, "back.toml\n")
    parts = [f"model.{part}" for part in ("transformer", "vae", "text_encoder", "text_encoder_2")]
    written = tomli.loads(Path("back.toml").read_text(encoding="utf-8"))
    if target == "sd-scripts":
        # It wants single files, which the embedded model has not.
        text = Path("back.toml").read_text(encoding="utf-8")
        kept = [line for line in text.splitlines() if not line.startswith(tuple(part[6:] + " =" for part in parts))]
        Path("back.toml").write_text("\n".join(kept).replace(written["model"]["base"], "nano"), encoding="utf-8")
    dry = fluxtune("train", "--config", "back.toml", "--set", "model.base=nano", "--dry-run", "--json")
    assert dry.code == 0, dry.err
    assert written["training"]["steps"] in (30, 36 if target != "onetrainer" else 30)
    assert written["dataset"]["trigger"] == "zorvex"


def test_a_run_folder_is_handed_over_with_its_settings(fluxtune: Fluxtune, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "dog"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (run / "config.toml").write_text(f'[[dataset.folders]]\npath = "{photos}"\n[lora]\nrank = 7\n')
    assert fluxtune("export", "config", str(run), "--to", "simpletuner", "-o", "there", "--steps", "9").code == 0
    written = json.loads((tmp_path / "there" / "config.json").read_text())
    assert (written["lora_rank"], written["max_train_steps"]) == (7, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("photos", "-o", "there"), "--to is not given"),
        (("photos", "--to", "onetrainer"), "--output is not given"),
        (("photos", "--to", "onetrainer", "-o", "photos"), "this is there already"),
        (("photos", "--to", "onetrainer", "-o", "photos/there"), "would lie within the data set"),
        (("--to", "onetrainer", "-o", "there"), "no pictures to hand over"),
        (("photos", "--to", "onetrainer", "-o", "there", "--accept", "memory"), "--accept: "),
        (("photos", "--to", "onetrainer", "-o", "there", "--steps", "0"), "training.steps is 0"),
        (("photos", "--to", "onetrain", "-o", "there"), "'onetrain' is not one of"),
    ],
)
def test_a_wrong_command_is_one_message(
    fluxtune: Fluxtune, photos: Path, arguments: tuple[str, ...], message: str
) -> None:
    outcome = fluxtune("export", "config", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert not Path("there").exists()


def test_pictures_with_errors_are_refused_or_left_out(fluxtune: Fluxtune, photos: Path) -> None:
    (photos / "0.png").write_bytes(b"no picture")
    arguments = ("export", "config", "photos", "--to", "diffusers", "-o", "there")
    assert fluxtune(*arguments).code == 3
    assert not Path("there").exists()
    assert fluxtune(*arguments, "--accept", "data").code == 0


def test_the_file_to_write_is_named_after_the_one_that_is_read(fluxtune: Fluxtune, photos: Path) -> None:
    fluxtune("export", "config", "photos", "--to", "simpletuner", "-o", "there")
    outcome = fluxtune("import", "config", "there/config.json")
    assert (outcome.code, outcome.out) == (0, "config.toml\n")
    assert "SimpleTuner: " in outcome.err
    again = fluxtune("import", "config", "there/config.json")
    assert again.code == 2
    assert "this is there already" in again.err
    assert "--output" in again.err


def test_a_toml_beside_which_it_would_lie_is_left_alone(fluxtune: Fluxtune, photos: Path) -> None:
    fluxtune("export", "config", "photos", "--to", "sd-scripts", "-o", "there")
    os.chdir("there")
    before = Path("sd-scripts.toml").read_bytes()
    assert fluxtune("import", "config", "sd-scripts.toml").out == "sd-scripts-fluxtune.toml\n"
    assert fluxtune("import", "config", "sd-scripts.toml", "-o", "sd-scripts.toml").code == 2
    assert Path("sd-scripts.toml").read_bytes() == before


def test_what_was_not_taken_over_is_a_finding_with_its_line(fluxtune: Fluxtune, photos: Path) -> None:
    fluxtune("export", "config", "photos", "--to", "ai-toolkit", "-o", "there")
    file = Path("there/ai-toolkit.yaml")
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("  train:\n", "  train:\n        noise_offset: 0.1\n".replace("        ", "      ")))
    text = file.read_text(encoding="utf-8")
    line = next((number for number, each in enumerate(text.splitlines(), 1) if "noise_offset" in each), None)
    outcome = fluxtune("import", "config", str(file), "--json")
    assert outcome.code == 0, outcome.err
    records = outcome.records()
    findings = [record for record in records if record["event"] == "finding" and record["severity"] == "warning"]
    (finding,) = findings
    assert line is not None and finding["where"].endswith(f":{line}")
    assert "docs/moving.md" in finding["hint"]
    assert records[-1]["data"]["origins"]["lora.rank"].startswith("network.linear, there/ai-toolkit.yaml:")


@pytest.mark.parametrize("arguments", [("import", "config"), ("import",)])
def test_a_command_without_a_file_says_what_is_wanted(fluxtune: Fluxtune, arguments: tuple[str, ...]) -> None:
    outcome = fluxtune(*arguments)
    assert outcome.code == 2
    assert "fluxtune import config" in outcome.out + outcome.err


def test_an_export_that_was_moved_is_imported_all_the_same(fluxtune: Fluxtune, photos: Path) -> None:
    for target in TARGETS:
        fluxtune("export", "config", "photos", "--to", target, "-o", f"for-{target}")
        shutil.move(f"for-{target}", f"elsewhere-{target}")
        outcome = fluxtune("import", "config", f"elsewhere-{target}/{SETTINGS[target]}", "-o", f"{target}.toml")
        assert outcome.code == 0, outcome.err
        (row,) = tomli.loads(Path(f"{target}.toml").read_text(encoding="utf-8"))["dataset"]["folders"]
        assert Path(row["path"]).is_dir(), target
