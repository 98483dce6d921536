from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fluxtune.cli.completions import scripts

COMPLETIONS = Path(__file__).parents[2] / "completions"


@pytest.mark.parametrize("name", scripts())
def test_the_completion_scripts_are_current(name: str) -> None:
    written = (COMPLETIONS / name).read_text(encoding="utf-8")
    assert written == scripts()[name], "run `python -m fluxtune.cli.completions completions`"


def test_there_is_a_script_for_each_shell_and_no_other_file() -> None:
    assert sorted(file.name for file in COMPLETIONS.iterdir()) == sorted(scripts())


def ask(shell: str, line: str) -> str:
    """What the shell's script is told when the user presses tab at the end of ``line``."""
    words = line.split(" ")
    return subprocess.run(
        [sys.executable, "-m", "fluxtune"],
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
            "_FLUXTUNE_COMPLETE": f"complete_{shell}",
            "COMP_WORDS": "\n".join(words),
            "COMP_CWORD": str(len(words) - 1),
            "_TYPER_COMPLETE_ARGS": line,
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
            "_TYPER_COMPLETE_WORD_TO_COMPLETE": words[-1],
        },
    ).stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_every_shell_completes_preset_names(shell: str) -> None:
    answer = ask(shell, "fluxtune train --preset 2")
    assert "24gb" in answer
    assert "12gb" not in answer
    assert "48gb" not in answer


@pytest.mark.parametrize("shell", ["fish", "powershell"])
def test_a_presets_description_stays_on_its_line_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = ask(shell, "fluxtune train --preset ").splitlines()
    assert len(lines) == len(list(Path(__file__).parents[2].joinpath("presets").glob("*.toml")))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_every_shell_completes_commands(shell: str) -> None:
    answer = ask(shell, "fluxtune tr")
    assert "train" in answer
    assert "sample" not in answer


def test_the_presets_of_the_user_complete_too(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(os.environ["FLUXTUNE_CONFIG"]) / "presets"
    folder.mkdir()
    (folder / "2x3090.toml").write_text("# Two cards.\n", encoding="utf-8")
    assert ask("bash", "fluxtune train --preset 2").split() == ["24gb", "24gb-bf16", "2x3090"]


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_the_bash_script_completes_in_a_bash(tmp_path: Path) -> None:
    command = tmp_path / "fluxtune"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fluxtune "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    script = (
        f'source "{COMPLETIONS / "fluxtune.bash"}"; COMP_WORDS=(fluxtune train --preset 2); COMP_CWORD=3; '
        '_fluxtune_completion fluxtune; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        cwd=COMPLETIONS.parent,
    )
    assert done.stdout.strip() == "24gb 24gb-bf16"
