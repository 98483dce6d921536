"""What `python3 scripts/test.py` and `scripts/demo.py` do before anything is installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "environment.py"


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[list[str]]]:
    """What is run to make the environment ``tmp_path / "env"`` ready; nothing of it is run."""
    spec = importlib.util.spec_from_file_location("environment_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    asked: list[list[str]] = []
    monkeypatch.setattr(script, "run", lambda command, hint="", **environment: asked.append(command))
    monkeypatch.setattr(sys, "argv", ["test.py", "--environment", str(tmp_path / "env")])

    def ready() -> list[list[str]]:
        script.ready_python("Test.")
        return asked

    return ready


def test_an_environment_is_made_where_there_is_none(commands: Callable[[], list[list[str]]], tmp_path: Path) -> None:
    making, installing = commands()
    assert making == [sys.executable, "-m", "venv", str(tmp_path / "env")]
    assert installing[1:4] == ["-m", "pip", "install"]


def test_an_environment_without_pip_is_made_anew(commands: Callable[[], list[list[str]]], tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True)
    making, _ = commands()
    assert making == [sys.executable, "-m", "venv", "--clear", str(tmp_path / "env")]


def test_a_folder_that_is_no_environment_is_never_cleared(
    commands: Callable[[], list[list[str]]], tmp_path: Path
) -> None:
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "mine.txt").touch()
    making, _ = commands()
    assert "--clear" not in making


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
def test_an_environment_whose_pip_runs_is_kept(commands: Callable[[], list[list[str]]], tmp_path: Path) -> None:
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    (installing,) = commands()
    assert installing[1:4] == ["-m", "pip", "install"]
