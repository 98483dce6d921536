"""`train` and `sample` with single files make what they make with the folder that the files were written from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from comfy_files import comfy_parts, write
from PIL import Image
from safetensors.torch import load_file

from fluxtune.cli.app import main

FILES = {
    "transformer": "flux1-dev.safetensors",
    "vae": "ae.safetensors",
    "text_encoder": "clip_l.safetensors",
    "text_encoder_2": "t5xxl_fp16.safetensors",
}


@pytest.fixture
def working_folder(tmp_path: Path, tiny_flux: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with settings for the tiny FLUX, its files in ComfyUI's layout, and a base with none of its weights."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_flux, tmp_path / "small", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "models").mkdir()
    for part, weights in comfy_parts(tiny_flux).items():
        write(tmp_path / "models" / FILES[part], weights)
    (tmp_path / "fluxtune.toml").write_text(
        """
        dataset = { resolution = [128], trigger = "zorvex", caption_dropout = 0.0 }
        memory = { base_precision = "fp32", text_precision = "fp32" }
        training = { precision = "fp32", device = "cpu", steps = 2, optimizer = "adamw", learning_rate = 1e-2 }
        previews = { every = 0, steps = 1, width = 64, height = 64, seeds = [5], prompts = ["a zorvex"] }
        lora = { rank = 2 }
        """
    )
    return tmp_path


def test_a_run_and_its_pictures_are_those_of_the_folder(working_folder: Path, tiny_flux: Path) -> None:
    named = {"base": "small", **{part: f"models/{name}" for part, name in FILES.items()}}
    sets = [f"--set=model.{key}={json.dumps(value)}" for key, value in named.items()]
    folder = [f"--set=model.base={json.dumps(str(tiny_flux))}"]
    for output, model in (("of-files", sets), ("of-folder", folder)):
        assert main(["train", "pictures", "--output", output, *model]) == 0
        # Without the settings: a LoRA in its run's folder brings them along.
        assert main(["sample", "--lora", output, "--output", f"{output}-sampled"]) == 0
    ours, theirs = (load_file(working_folder / run / f"{run}.safetensors") for run in ("of-files", "of-folder"))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert any(tensor.any() for name, tensor in ours.items() if "up" in name or "lora_B" in name)
    (seen,) = Path("of-files-sampled").glob("*.png")
    (expected,) = Path("of-folder-sampled").glob("*.png")
    assert np.array_equal(np.asarray(Image.open(seen)), np.asarray(Image.open(expected)))
    facts = json.loads(Image.open(seen).text["fluxtune"])  # type: ignore[attr-defined]
    assert facts["base_files"] == FILES
    assert str(working_folder) not in json.dumps(facts)
    run = json.loads(Path("of-files", "run.json").read_text())
    assert run["facts"]["base"] != json.loads(Path("of-folder", "run.json").read_text())["facts"]["base"]


def test_a_file_of_another_kind_ends_the_command_with_exit_code_5(
    working_folder: Path, tiny_flux: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--base", str(tiny_flux), "--set=model.transformer=models/t5xxl_fp16.safetensors"]
    assert main(["sample", "a cup", *given]) == 5
    said = capsys.readouterr().err
    assert "this is not FLUX.1's transformer but the text encoder T5-XXL" in said
    assert "hint: name it as model.text_encoder_2" in said
