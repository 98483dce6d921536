"""Pictures say how they were made, in every format, and are made again from that to the bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfy_files import bfl_vae, weights_of, write
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from fluxtune.cli.app import main
from fluxtune.sampling.picture_files import facts_in

PROMPT = "a {red|blue} cup, naïve"


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_flux: Path, lora: Path) -> Path:
    """A folder with a LoRA, a start picture, and settings that make small pictures with the tiny FLUX."""
    monkeypatch.chdir(tmp_path)
    settings = f"""
        model.base = {json.dumps(str(tiny_flux))}
        memory = {{ base_precision = "fp32", text_precision = "fp32" }}
        training = {{ precision = "fp32", device = "cpu" }}
        previews = {{ steps = 2, width = 64, height = 64, seeds = [5] }}
    """
    (tmp_path / "fluxtune.toml").write_text(settings)
    shutil.copy(lora, tmp_path / "mug.safetensors")
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "start.png")
    return tmp_path


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def made(*arguments: str, output: str = "out") -> list[Path]:
    before = set(Path(output).glob("*"))
    assert main(["sample", *arguments, "--output", output]) == 0
    return sorted(set(Path(output).glob("*")) - before)


@pytest.mark.parametrize("form", ["png", "webp", "jpeg"])
def test_a_picture_with_all_that_it_can_have_is_made_again_to_the_bit(form: str) -> None:
    arguments = ["--lora", "mug.safetensors:0.7", "--start", "start.png", "--strength", "0.8", "--size", "80x64"]
    arguments += ["--negative-prompt", "blurry", "--true-guidance", "3", "--guidance", "2.5", "--format", form]
    (first,) = made(PROMPT, *arguments)
    facts = facts_in(first)
    assert facts["template"] == PROMPT and facts["prompt"] in ("a red cup, naïve", "a blue cup, naïve")
    # Other settings than the picture's, which nothing of it may take on.
    Path("fluxtune.toml").write_text(
        Path("fluxtune.toml").read_text().replace("steps = 2", "steps = 7").replace('"fp32", device', '"bf16", device')
    )
    (again,) = made("--from", str(first), "--format", form, output="again")
    assert np.array_equal(pixels(first), pixels(again))
    assert facts_in(again) == facts


def test_a_picture_of_a_batch_is_made_again_in_its_place() -> None:
    pictures = made("a cup", "a boat", "--seed", "3", "--count", "2", "--batch-size", "3")
    places = [facts_in(path).get("batch") for path in pictures]
    assert places == [{"size": 3, "index": 0}, {"size": 3, "index": 1}, {"size": 3, "index": 2}, None]
    (again,) = made("--from", str(pictures[2]), output="again")
    assert np.array_equal(pixels(pictures[2]), pixels(again))
    assert facts_in(again) == facts_in(pictures[2])


def test_flags_change_what_is_made_again() -> None:
    (first,) = made("a cup", "--lora", "mug.safetensors")
    (again,) = made("--from", str(first), "--seed", "9", "--steps", "1", "--size", "96x64", output="again")
    changed = facts_in(again)
    assert (changed["seed"], changed["steps"], changed["width"]) == (9, 1, 96)
    assert {**changed, "seed": 5, "steps": 2, "width": 64} == facts_in(first)


def test_all_pictures_of_a_grid_are_made_again() -> None:
    first = made("a cup", "--lora", "mug.safetensors", "--grid", "lora-scale=0,1")
    grid, pictures = first[0], first[1:]
    assert [path.name for path in first] == ["00-grid.png", "00-seed5-scale0.png", "00-seed5-scale1.png"]
    again = made("--from", str(grid), output="again")
    assert [path.name for path in again] == ["00-seed5.png", "01-seed5.png"]
    for one, other in zip(pictures, again, strict=True):
        assert np.array_equal(pixels(one), pixels(other))


def test_a_lora_by_groups_of_layers_acts_again_as_it_did() -> None:
    (first,) = made("a cup", "--lora", "mug.safetensors:0.8,double=0.25")
    (plain,) = made("a cup", "--lora", "mug.safetensors:0.8", output="plain")
    (again,) = made("--from", str(first), output="again")
    assert np.array_equal(pixels(first), pixels(again))
    assert not np.array_equal(pixels(first), pixels(plain))


def test_files_that_moved_are_refused_until_they_are_named_anew(capsys: pytest.CaptureFixture[str]) -> None:
    (first,) = made("a cup", "--lora", "mug.safetensors")
    Path("elsewhere").mkdir()
    Path("mug.safetensors").rename("elsewhere/other.safetensors")
    assert main(["sample", "--from", str(first)]) == 3
    told = capsys.readouterr().err
    assert "LoRA mug.safetensors of this picture is not found" in told and "hint: say where it is: --lora FILE" in told
    (again,) = made("--from", str(first), "--lora", "elsewhere/other.safetensors", output="again")
    assert np.array_equal(pixels(first), pixels(again))


def test_a_file_of_the_same_name_and_other_content_is_not_taken(capsys: pytest.CaptureFixture[str]) -> None:
    (first,) = made("a cup", "--start", "start.png")
    Image.new("RGB", (64, 64)).save("start.png")
    assert main(["sample", "--from", str(first)]) == 3
    assert "start picture start.png of this picture is not found" in capsys.readouterr().err


def test_another_base_model_of_the_same_name_is_refused(
    tiny_flux: Path, working_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (first,) = made("a cup")
    other = working_folder / "other" / "flux"
    shutil.copytree(tiny_flux, other)
    config = other / "scheduler" / "scheduler_config.json"
    assert config.is_file()
    vae = other / "vae" / "config.json"
    vae.write_text(vae.read_text() + "\n")
    assert main(["sample", "--from", str(first), "--base", str(other)]) == 5
    assert "was made with other files than those of" in capsys.readouterr().err
    Path("fluxtune.toml").unlink()
    assert main(["sample", "--from", str(first)]) == 3
    assert "hint: say where it is: --base flux" in capsys.readouterr().err


def rewritten(picture: Path, **changes: Any) -> Path:
    """A copy of a picture that says something else of itself."""
    from fluxtune.sampling.picture_files import Told, save

    facts = {**facts_in(picture), **changes}
    told = Told({name: value for name, value in facts.items() if value is not None}, "")
    path = picture.with_name("rewritten.png")
    save(path, Image.open(picture), told, 90)
    return path


def test_what_is_not_enough_to_make_a_picture_again_is_refused_with_the_reason(
    working_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (first,) = made("a cup", "--lora", "mug.safetensors", "--steps", "1")
    lora = {"name": "mug", "file": "../../mug.safetensors", "sha256": "x", "scale": 1.0}
    Image.new("RGB", (8, 8)).save("plain.png")
    Path("text.png").write_text("no picture")
    cases = [
        (Path("plain.png"), "does not say how it was made"),
        (Path("text.png"), "cannot read the picture"),
        (Path("gone.png"), "cannot read the picture"),
    ]
    for path, message in cases:
        assert main(["sample", "--from", str(path)]) == 3
        assert message in capsys.readouterr().err
    for changes, message in (
        ({"schema": 99}, "in no form that this version knows"),
        ({"redacted": True}, "so it cannot be made again"),
        ({"steps": None}, "steps missing or wrong"),
        ({"steps": 10**9}, "steps missing or wrong"),
        ({"prompt": 3, "seed": "x"}, "prompt, seed missing or wrong"),
        ({"loras": [lora]}, "loras missing or wrong"),
        ({"loras": [{**lora, "sha256": "0" * 64, "file": "é" * 200}]}, "loras missing or wrong"),
        *(({"pictures": each}, "in no form that this version knows") for each in ("none", 5, [], {}, [[]], [None])),
        ({"prompt": "\ud800"}, "prompt missing or wrong"),
        ({"batch": {"size": 2, "index": 2}}, "batch missing or wrong"),
        ({"versions": {"torch": 2}}, "versions missing or wrong"),
        ({"base_files": {"transformer": 1}}, "base_files missing or wrong"),
        ({"guidance": float("nan")}, "guidance missing or wrong"),
    ):
        assert main(["sample", "--from", str(rewritten(first, **changes))]) == 3
        assert message in capsys.readouterr().err


def test_versions_that_differ_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    (first,) = made("a cup", "--steps", "1")
    versions = {**facts_in(first)["versions"], "diffusers": "0.1"}
    made("--from", str(rewritten(first, versions=versions)), output="again")
    assert "was made with diffusers 0.1: with the versions here its last bits may differ" in capsys.readouterr().err


@pytest.mark.parametrize(
    "other", [["a cup"], ["--compare"], ["--grid", "seed=1,2"], ["--count", "2"], ["--preset", "12gb"]]
)
def test_what_asks_for_other_pictures_does_not_go_with_from(
    other: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "--from", "x.png", *other]) == 2
    assert "--from makes pictures as they were" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["webp", "jpeg"])
def test_other_interfaces_read_the_parameters_in_the_exif(form: str, working_folder: Path) -> None:
    (path,) = made("a naïve cup", "--format", form, "--negative-prompt", "blurry", "--lora", "mug.safetensors:0.5")
    with Image.open(path) as picture:
        comment = picture.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment.startswith(b"UNICODE\0")
    lines = comment[8:].decode("utf-16-be").split("\n")
    assert lines[:2] == ["a naïve cup <lora:mug:0.5>", "Negative prompt: blurry"]
    assert lines[2].startswith("Steps: 2, Sampler: Euler, CFG scale: 2, Distilled CFG Scale: 3.5, Seed: 5, Size: 64x64")
    content = path.read_bytes()
    for folder in (working_folder, working_folder.parent):
        assert str(folder).encode() not in content and str(folder).encode("utf-16-be") not in content


def test_a_prompt_that_no_jpeg_holds_is_refused_before_it_is_painted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "a cup " * 12_000, "--format", "jpeg"]) == 2
    assert "does not fit into a JPEG" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[]", "5", '"x"', "null", "[" * 100_000, '{"schema": 1e999}', "{" + "9" * 5000])
def test_a_picture_that_says_something_odd_of_itself_is_refused_in_one_message(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    info = PngInfo()
    info.add_text("fluxtune", text)
    Image.new("RGB", (8, 8)).save("odd.png", pnginfo=info)
    assert main(["sample", "--from", "odd.png"]) == 3
    assert capsys.readouterr().err.startswith("error: odd.png: ")


def test_settings_on_the_command_line_change_what_is_made_again_as_flags_do() -> None:
    (first,) = made("a cup")
    (again,) = made("--from", str(first), "--set", "previews.steps=1", "--set", "previews.seeds=[9]", output="again")
    assert {**facts_in(again), "seed": 5, "steps": 2} == facts_in(first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "previews.prompts=['a boat']"], "--set: previews.prompts changes nothing of a picture"),
        (["--batch-size", "2"], "--batch-size: sampling.batch_size changes nothing of a picture"),
        (
            ["--strength", "0.5"],
            "--strength: strength is how much of a start picture is painted over, and there is none",
        ),
        (
            ["--true-guidance", "3"],
            "--true-guidance: true guidance leads away from a negative prompt, and there is none",
        ),
        (["--start", "start.png"], "--start: start.png is not what the picture was made with"),
        (["--lora", "mug.safetensors"], "--lora: mug.safetensors is not what the picture was made with"),
        (["--lora", "mug.safetensors:0.5"], "--lora: --from says how strongly each LoRA acts"),
    ],
)
def test_what_changes_nothing_of_what_is_made_again_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (first,) = made("a cup", "--steps", "1")
    assert main(["sample", "--from", str(first), *arguments]) == 2
    assert f"error: {message}" in capsys.readouterr().err


def test_a_single_file_that_only_settings_files_name_is_not_taken_for_what_is_made_again() -> None:
    (first,) = made("a cup")
    with Path("fluxtune.toml").open("a") as settings:
        settings.write('model.transformer = "another.safetensors"\n')
    (again,) = made("--from", str(first), output="again")
    assert np.array_equal(pixels(first), pixels(again))


def test_a_single_file_that_the_picture_was_made_with_must_be_named_again(
    tiny_flux: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vae = bfl_vae(weights_of(tiny_flux, "vae"))
    for name, brightness in (("mine.safetensors", 0.3), ("other.safetensors", 0.0)):
        write(Path(name), {**vae, "decoder.conv_out.bias": torch.full_like(vae["decoder.conv_out.bias"], brightness)})
    (first,) = made("a cup", "--set", "model.vae=mine.safetensors")
    assert main(["sample", "--from", str(first)]) == 5
    assert "was made with other files than those of" in capsys.readouterr().err
    assert main(["sample", "--from", str(first), "--set", "model.vae=other.safetensors"]) == 5
    assert "and other.safetensors" in capsys.readouterr().err
    (again,) = made("--from", str(first), "--set", "model.vae=mine.safetensors", output="again")
    assert np.array_equal(pixels(first), pixels(again))
    (plain,) = made("a cup", output="plain")
    (changed,) = made("--from", str(plain), "--set", "model.vae=mine.safetensors", output="changed")
    assert np.array_equal(pixels(first), pixels(changed))
