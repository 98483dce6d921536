"""What an installed fluxtune has: the wheel alone, without the checkout around it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content."""
    built = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(built)], cwd=ROOT, check=True)
    (wheel,) = built.glob("*.whl")
    folder = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run(installed: Path, folder: Path, *arguments: str) -> str:
    """What a `fluxtune` command of the wheel prints."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-m", *arguments]
    return subprocess.run(call, env=environment, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_a_wheel_has_the_presets(installed: Path, tmp_path: Path) -> None:
    printed = run(installed, tmp_path, "fluxtune", "presets")
    for preset in (ROOT / "presets").glob("*.toml"):
        assert preset.stem in printed


def test_a_wheel_trains_its_embedded_model_on_its_demo_pictures(installed: Path, tmp_path: Path) -> None:
    quick = ["--steps=1", "--set=previews.every=0", "--set=training.preservation.method=none"]
    printed = run(installed, tmp_path, "fluxtune", "train", "--preset", "nano", "--output", "mine", *quick)
    assert printed.strip() == str(Path("mine/mine.safetensors"))
    assert (tmp_path / "mine" / "mine.safetensors").is_file()
    assert (installed / "fluxtune" / "nano" / "judge.safetensors").is_file()
