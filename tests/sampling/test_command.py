"""`fluxtune sample` as a whole command, in this process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from diffusers import FluxPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from stock_flux import by_hand

import fluxtune
from fluxtune.cli.app import main
from fluxtune.config.layers import to_toml
from fluxtune.config.memory import MemoryConfig
from fluxtune.config.model import ModelConfig
from fluxtune.config.previews import PreviewsConfig
from fluxtune.config.schema import Config
from fluxtune.config.training import TrainingConfig
from fluxtune.nano import model_folder
from fluxtune.runs import Run
from fluxtune.sampling.picture_files import facts_in


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_flux: Path) -> Path:
    """A folder whose fluxtune.toml makes small pictures with the tiny FLUX."""
    monkeypatch.chdir(tmp_path)
    settings = f"""
        model.base = {json.dumps(str(tiny_flux))}
        memory = {{ base_precision = "fp32", text_precision = "fp32" }}
        training = {{ precision = "fp32", device = "cpu" }}
        previews = {{ steps = 1, width = 64, height = 64, seeds = [5] }}
    """
    (tmp_path / "fluxtune.toml").write_text(settings)
    return tmp_path


@pytest.fixture
def run(working_folder: Path, tiny_flux: Path, lora: Path) -> Run:
    """A finished run whose settings paint 80x64 pictures, in a folder without settings of its own."""
    (working_folder / "fluxtune.toml").unlink()
    config = Config(
        model=ModelConfig(base=str(tiny_flux)),
        memory=MemoryConfig(base_precision="fp32", text_precision="fp32"),
        training=TrainingConfig(precision="fp32", device="cpu"),
        previews=PreviewsConfig(prompts=["a mug"], seeds=[5, 6], steps=1, width=80, height=64),
    )
    run = Run.create(working_folder / "runs" / "mug", to_toml(config), {}, {})
    shutil.copy(lora, run.result_path("mug"))
    run.update(status="finished", result="mug.safetensors")
    return run


def facts(picture: str) -> dict[str, object]:
    return dict(json.loads(Image.open(picture).text["fluxtune"]))  # type: ignore[attr-defined]


def test_the_pictures_paths_are_all_that_stdout_gets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "a cup", "a boat", "--seed", "3", "--count", "2", "--output", "out"]) == 0
    printed = capsys.readouterr().out.split()
    names = ["00-seed3.png", "00-seed4.png", "01-seed3.png", "01-seed4.png"]
    assert printed == [str(Path("out", name)) for name in names]
    assert facts(printed[3])["prompt"] == "a boat"


def test_json_ends_with_the_files_that_were_made(capsys: pytest.CaptureFixture[str], lora: Path) -> None:
    assert main(["sample", "a cup", "--lora", f"{lora}:0.5", "--compare", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert records[-1]["event"] == "result"
    made = records[-1]["data"]
    assert [Path(path).name for path in made["pictures"]] == ["00-seed5-without.png", "00-seed5.png"]
    assert Path(made["grid"]).is_file()
    assert facts(made["pictures"][1])["loras"][0]["scale"] == 0.5  # type: ignore[index]


def test_prompts_come_from_a_file_one_a_line(working_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (working_folder / "prompts.txt").write_bytes("\ufeffa naïve cup\r\n\r\na boat\n".encode())
    assert main(["sample", "--prompts", "prompts.txt"]) == 0
    printed = capsys.readouterr().out.split()
    assert [facts(path)["prompt"] for path in printed] == ["a naïve cup", "a boat"]


def test_size_steps_and_guidance_are_taken_from_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "a cup", "--size", "96x64", "--steps", "2", "--guidance", "1.5"]) == 0
    made = facts(capsys.readouterr().out.strip())
    assert [made[name] for name in ("width", "height", "steps", "guidance")] == [96, 64, 2, 1.5]


def test_a_run_folder_stands_for_its_result_and_brings_its_settings(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "--lora", str(run.folder)]) == 0
    printed = capsys.readouterr().out.split()
    assert [Path(path).name for path in printed] == ["00-seed5.png", "00-seed6.png"]
    made = facts(printed[0])
    assert [made[name] for name in ("prompt", "width", "steps")] == ["a mug", 80, 1]
    assert made["loras"][0]["file"] == "mug.safetensors"  # type: ignore[index]


def test_settings_in_the_folder_leave_a_runs_base_model_in_place(
    run: Run, working_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (working_folder / "fluxtune.toml").write_text("previews.width = 96\n", encoding="utf-8")
    assert main(["sample", "a cup", "--lora", str(run.folder), "--seed", "7"]) == 0
    made = facts(capsys.readouterr().out.strip())
    assert [made[name] for name in ("width", "height", "steps", "seed", "precision")] == [96, 64, 1, 7, "fp32"]


@pytest.mark.parametrize("how", ["--base", "--lora"])
def test_the_embedded_model_brings_its_own_preset(
    how: str,
    working_folder: Path,
    tiny_flux: Path,
    lora: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (working_folder / "fluxtune.toml").unlink()
    monkeypatch.setattr("fluxtune.nano.model_folder", lambda: tiny_flux)
    named = working_folder / "named.safetensors"
    save_file(load_file(lora), named, metadata={"ss_sd_model_name": "nano"})
    assert main(["sample", "a cup", how, {"--base": "nano", "--lora": str(named)}[how], "--steps", "1"]) == 0
    made = facts(capsys.readouterr().out.strip())
    assert [made[name] for name in ("base", "width", "precision")] == ["nano", 128, "fp32"]


def test_the_embedded_model_paints_what_the_stock_pipeline_paints(
    working_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (working_folder / "fluxtune.toml").unlink()
    assert main(["sample", "a red house on a hill", "--base", "nano", "--seed", "1", "--steps", "4"]) == 0
    ours = Image.open(capsys.readouterr().out.strip())
    pipeline = FluxPipeline.from_pretrained(model_folder())
    theirs = by_hand(pipeline, "a red house on a hill", seed=1, width=128, height=128, num_inference_steps=4)
    assert ours.tobytes() == theirs.tobytes()


def test_an_unfinished_run_has_no_result_to_sample(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.update(status="stopped", result=None)
    assert main(["sample", "--lora", str(run.folder)]) == 6
    assert "no result yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a cup", "--size", "large"], "wanted WIDTHxHEIGHT"),
        (["a cup", "--size", "100x64"], "--size: previews.width is 100"),
        (["a cup", "--steps", "many"], "--steps: previews.steps"),
        (["a cup", "--lora", "absent.safetensors"], "absent.safetensors: there is no such LoRA file"),
        (["a cup", "--compare"], "there is no LoRA"),
        (["--prompts", "absent.txt"], "absent.txt: cannot read the file"),
        ([], "there is no prompt"),
        (["a cup", "--device", "cuda"], "no such option: --device"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_help_and_usage_errors_import_neither_torch_nor_diffusers() -> None:
    code = """
        import sys
        from fluxtune.cli.app import main
        for arguments in (["--help"], ["a cup", "--steps", "many"], ["a cup", "--size", "large"], []):
            main(["sample", *arguments])
        sys.exit(bool({"torch", "diffusers", "transformers"} & set(sys.modules)))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(fluxtune.__file__).parents[1])
    assert done.returncode == 0, done.stderr


def test_no_library_writes_beside_fluxtunes_own_lines(working_folder: Path, lora: Path) -> None:
    package = Path(fluxtune.__file__).parents[1]
    command = [sys.executable, "-m", "fluxtune", "sample", "a cup", "--lora", str(lora), "--lora", str(lora)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(package)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(Path("samples", "00-seed5.png"))]
    labels = [line.partition(":")[0] for line in done.stderr.splitlines()]
    assert labels == ["encode", "load text encoder 2", "load", "load transformer", "sample", "denoise", "picture"]


def test_precisions_that_are_left_to_fluxtune_are_decided_and_stand_in_the_picture(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sets = ["--set=memory.base_precision=auto", "--set=memory.modulation=auto", "--set=memory.budget=2"]
    assert main(["sample", "a cup", "--seed", "3", "--output", "out", *sets]) == 0
    told = facts("out/00-seed3.png")
    assert (told["base_precision"], told["text_precision"], told["modulation"]) == ("fp32", "fp32", "card")
    assert "plan: fp32 base; at most" in capsys.readouterr().err


def test_what_does_not_fit_the_card_is_refused_before_weights_load(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "a cup", "--output", "out", "--set=memory.budget=0.601"]) == 4
    told = capsys.readouterr().err
    assert "of graphics memory" in told and "hint: " in told and "load" not in told.split("plan:")[0]
    assert not Path("out").exists()
    assert main(["sample", "a cup", "--output", "out", "--set=memory.budget=0.601", "--accept", "memory"]) == 0


def test_checkpoints_of_an_unfinished_run_make_a_contact_sheet(
    run: Run, lora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        folder = run.checkpoint_folder(step)
        folder.mkdir(parents=True)
        scale = 0.5 * step
        tensors = {name: tensor * scale if "lora_B" in name else tensor for name, tensor in load_file(lora).items()}
        save_file(tensors, folder / "mug.safetensors", metadata={"format": "pt"})
        (folder / "manifest.json").write_text("{}")
    run.update(status="stopped", result=None)
    assert main(["sample", "--lora", f"{run.folder}:0.5", "--grid", "checkpoint=all", "--seed", "5", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = [record for record in records if record["event"] == "picture"]
    assert [Path(record["path"]).name for record in told] == [
        "00-seed5-step1.png",
        "00-seed5-step2.png",
        "00-grid.png",
    ]
    assert [record["prompt"] for record in told] == ["a mug", "a mug", None]
    data = records[-1]["data"]
    assert data["grids"] == [data["grid"]] == [told[2]["path"]]
    used = [facts(path)["loras"][0] for path in data["pictures"]]  # type: ignore[index]
    assert [use["scale"] for use in used] == [0.5, 0.5] and used[0]["sha256"] != used[1]["sha256"]


def test_a_file_of_prompts_with_settings_of_their_own(working_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (working_folder / "words").mkdir()
    (working_folder / "words" / "colour.txt").write_text("red\nblue\n")
    rows = [{"prompt": "a __colour__ cup", "count": 2, "name": "cup"}, {"prompt": "a boat", "size": "96x64", "seed": 9}]
    (working_folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["--prompts", "prompts.jsonl", "--wildcards", "words", "--format", "webp", "--quality", "80"]
    assert main(["sample", *arguments]) == 0
    printed = capsys.readouterr().out.split()
    assert [Path(path).name for path in printed] == ["00-cup-seed5.webp", "00-cup-seed6.webp", "01-seed9.webp"]
    assert Image.open(printed[2]).size == (96, 64)
    told = facts_in(Path(printed[0]))
    assert told["template"] == "a __colour__ cup" and told["prompt"] in ("a red cup", "a blue cup")
