"""Links, relative names and names from strangers lead no command to write outside the folder that it was given."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from fluxtune.cli.app import main

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links take a right there that few have")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What lies beside the data set, and must stay as it is."""
    folder = tmp_path / "outside"
    folder.mkdir()
    Image.new("RGB", (128, 128), "teal").save(folder / "picture.png")
    (folder / "picture.txt").write_text("theirs")
    (folder / "uncaptioned.png").write_bytes((folder / "picture.png").read_bytes())
    return folder


@pytest.fixture
def photos(tmp_path: Path, outside: Path) -> Path:
    """A data set that leads out of itself in each way that a file system and a description allow."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(2):
        Image.new("RGB", (128, 128), (200, 90 * number, 90)).save(folder / f"{number}.png")
    (folder / "0.txt").symlink_to(outside / "picture.txt")
    (folder / "1.txt").symlink_to("../outside/new.txt")
    (folder / "linked.png").symlink_to(outside / "picture.png")
    (folder / "linked.txt").write_text("a  cup ,of coffee")
    (folder / "bare.png").symlink_to(outside / "uncaptioned.png")
    (folder / "deeper").symlink_to(outside)
    lines = [{"file_name": "../outside/picture.png", "text": "x"}, {"file_name": str(outside / "n.png"), "text": "y"}]
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def state_of(folder: Path) -> dict[str, str]:
    """Each file below a folder and what is in it."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_no_command_writes_outside_the_folder_that_it_was_given(
    tmp_path: Path, photos: Path, outside: Path, tiny_flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    before, pictures = state_of(outside), {file.name for file in photos.iterdir()}
    small = ["--set", "dataset.resolution=128", "--accept", "data", "--steps", "1"]
    small += ["--trigger", "zorvex", "--set", 'dataset.missing_captions="trigger"']
    cpu = ["--set", 'training.device="cpu"', "--set", 'training.optimizer="adamw"', "--set", "previews.every=0"]
    commands = {
        "fixed": ["validate", str(photos), "--fix", "fixed"],
        "copy": ["export", "dataset", str(photos), "--accept", "data", "--format", "kohya", "--output", "copy"],
        "linked": ["export", "dataset", str(photos), "--accept", "data", "--format", "kohya", "--link", "-o", "linked"],
        "run": ["train", str(photos), "--base", str(tiny_flux), "--output", "run", *small, *cpu],
    }
    for made, command in commands.items():
        assert main(command) in (0, 3), command
        assert {path.name for path in work.iterdir()} <= {*commands}
        assert state_of(outside) == before, command
        assert {file.name for file in photos.iterdir()} == pictures
        if (work / made).exists():
            leads = [path for path in (work / made).rglob("*") if path.is_symlink()]
            assert all(Path(os.path.realpath(path)).is_relative_to(work) for path in leads)
    assert (work / "run" / "run.safetensors").is_file()


def test_captions_are_written_beside_pictures_and_never_through_links(
    tmp_path: Path, photos: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (photos / "deeper").unlink()
    (photos / "metadata.jsonl").unlink()
    before = state_of(outside)
    nano = ["--set", 'captioning.captioner="nano"', "--set", "captioning.max_tokens=4"]
    (photos / "1.txt").unlink()
    assert main(["caption", str(photos), *nano, "--existing", "overwrite"]) == 0
    assert state_of(outside) == before
    captions = {file.name: file.is_symlink() for file in photos.glob("*.txt")}
    assert captions == {name: False for name in ("0.txt", "1.txt", "bare.txt", "linked.txt")}


@pytest.mark.parametrize("stated", ["../../outside/picture", "/etc/cron.d/x", "..", "a/../../x", "x\0y", "\x1b[31m"])
def test_a_name_in_the_header_of_a_lora_decides_no_path(
    tmp_path: Path, outside: Path, tiny_flux: Path, monkeypatch: pytest.MonkeyPatch, stated: str
) -> None:
    import torch
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    layer = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {f"{layer}.lora_A.weight": torch.ones(4, 64), f"{layer}.lora_B.weight": torch.ones(64, 4)}
    save_file(tensors, tmp_path / "mug.safetensors", metadata={"ss_output_name": stated, "modelspec.title": stated})
    before, there = state_of(outside), {path.name for path in tmp_path.iterdir()}
    painting = [
        "sample",
        "a star",
        "--base",
        str(tiny_flux),
        "--lora",
        "mug.safetensors",
        "--compare",
        "--output",
        "out",
    ]
    assert main([*painting, "--size", "64x64", "--steps", "1", "--set", 'training.device="cpu"']) == 0
    assert {path.name for path in tmp_path.iterdir()} == {*there, "out"}
    assert all(path.suffix == ".png" and path.parent == tmp_path / "out" for path in (tmp_path / "out").rglob("*"))
    assert state_of(outside) == before


def test_a_run_folder_that_is_a_link_is_never_written_through(
    tmp_path: Path, outside: Path, tiny_flux: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, target in (("gone", tmp_path / "nowhere"), ("there", outside)):
        (tmp_path / name).symlink_to(target)
        before = state_of(outside)
        assert main(["train", str(pictures), "--base", str(tiny_flux), "--output", name, "--steps", "1"]) == 6
        assert state_of(outside) == before
        assert not (tmp_path / "nowhere").exists()
    shutil.rmtree(outside)
