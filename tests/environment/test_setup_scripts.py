"""`scripts/setup.sh` picks the torch for this machine's card."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fake_nvidia_smi
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the scripts ask a shell script that stands in")
SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def commands(tmp_path: Path) -> list[str]:
    """The arguments of a dry run."""
    return ["sh", str(SCRIPTS / "setup.sh"), "--dry-run", "--environment", str(tmp_path / "env")]


def dry_run(commands: list[str], *more: str) -> tuple[list[str], str]:
    """(Commands that would be run, what is told of them)."""
    done = subprocess.run([*commands, *more], capture_output=True, text=True, check=True)
    return done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize(
    ("machine", "torch", "pinned"),
    [
        ({}, "torch==2.13.0+cu130 --index-url https://download.pytorch.org/whl/cu130", True),
        (
            {"driver": "550.54.14", "cuda": "12.4"},
            "torch==2.13.0+cu126 --index-url https://download.pytorch.org/whl/cu126",
            True,
        ),
        (
            {"driver": "570.86.10", "cuda": "12.8", "name": "NVIDIA GeForce RTX 5090", "capability": "12.0"},
            "torch==2.11.0+cu128 --index-url https://download.pytorch.org/whl/cu128",
            False,
        ),
    ],
)
def test_the_torch_is_that_of_the_card(
    machine: dict[str, str],
    torch: str,
    pinned: bool,
    commands: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_nvidia_smi.install(tmp_path / "bin", monkeypatch, **machine)
    (making, first, second, last), told = dry_run(commands)
    python = tmp_path / "env" / "bin" / "python"
    assert making.endswith(f"-m venv {tmp_path / 'env'}")
    assert first == f"{python} -m pip install --quiet --no-deps {torch}"
    assert ("--constraint" in second) == pinned
    assert last == f"{python} -m fluxtune doctor"
    assert machine.get("name", "RTX 4090") in told
    assert not (tmp_path / "env").exists()


def test_a_card_whose_driver_is_broken_gets_what_it_will_need(
    commands: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvidia_smi.install_broken(tmp_path / "bin", monkeypatch, fake_nvidia_smi.NO_COMMUNICATION, 9)
    printed, told = dry_run(commands)
    assert printed[1].endswith("whl/cu130")
    assert "couldn't communicate" in told


def test_the_build_can_be_chosen(commands: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi.install(tmp_path / "bin", monkeypatch)
    printed, _ = dry_run(commands, "--torch", "cpu")
    assert printed[1].endswith("torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu")


def test_without_a_python_that_will_do_it_says_how_to_get_one(commands: list[str], tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("dirname", "sh"):
        (tools / tool).symlink_to(f"/bin/{tool}" if os.path.exists(f"/bin/{tool}") else f"/usr/bin/{tool}")
    (tools / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tools / "python3").chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", *commands[1:]], env={"PATH": str(tools)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no Python 3.11 or newer")
    assert "\n\nhint: install Python" in done.stderr
