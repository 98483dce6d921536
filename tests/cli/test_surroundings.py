"""Every command where something around it is odd: streams closed or full, no home, no locale, odd arguments."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = {
    "train": ["train", "photos", "--base", "nano", "--dry-run"],
    "validate": ["validate", "photos"],
    "caption": ["caption", "photos", "--dry-run"],
    "sample": ["sample", "x", "--lora", "missing.safetensors"],
    "export": ["export", "dataset", "photos", "--format", "kohya", "--output", "out"],
    "presets": ["presets"],
    "doctor": ["doctor", "--no-such-option"],
}
LONG = "a" * 100_000
HOMELESS = """
import os, sys
os.getuid = lambda: 54321
from fluxtune.cli.app import main
sys.exit(main(sys.argv[1:]))
"""


def shell(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A shell line in which ``fluxtune`` is this one."""
    return subprocess.run(
        ["bash", "-c", f'fluxtune() {{ "{sys.executable}" -m fluxtune "$@"; }}\n{script}'],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize(
    ("script", "code", "told"),
    [
        ("fluxtune presets >&-", 0, ""),
        ("fluxtune presets <&- >&- 2>&-", 0, ""),
        ("fluxtune train 2>&-", 2, ""),
        ("fluxtune train 2>/dev/full", 2, ""),
        ("fluxtune presets >/dev/full", 6, "error: stdout: no space left on device\n\nhint: free some space\n"),
        ("fluxtune presets --json >/dev/full", 6, "error: stdout: no space left on device\n\nhint: free some space\n"),
        ("fluxtune --help >/dev/full", 6, "error: no space left on device\n\nhint: free some space\n"),
        ("fluxtune train --help | true; exit ${PIPESTATUS[0]}", 0, ""),
        ("fluxtune presets --json | true; exit ${PIPESTATUS[0]}", 0, ""),
        ("fluxtune caption photos --review </dev/null", 2, "error: --review: --review asks at a terminal"),
        ("fluxtune caption photos --review <&-", 2, "error: --review: --review asks at a terminal"),
        (
            "mkdir gone; cd gone; rmdir ../gone; fluxtune validate photos",
            6,
            "error: the working folder does not exist any more\n\nhint: cd to a folder that does\n",
        ),
    ],
)
def test_streams_and_folders_that_are_not_there(tmp_path: Path, script: str, code: int, told: str) -> None:
    done = shell(script, tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stderr.endswith(told) if told.endswith("\n") else told in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_help_is_readable_in_the_poorest_terminal(tmp_path: Path) -> None:
    poor = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TERM": "dumb", "COLUMNS": "1"}
    done = shell("fluxtune train --help && unset TERM && fluxtune presets", tmp_path, **poor)
    assert (done.returncode, done.stderr.count("error")) == (0, 0)
    assert "--learning-rate" in done.stdout
    assert "24gb-bf16" in done.stdout


def test_without_a_home_the_message_says_what_to_set(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HOME", "XDG", "FLUXTUNE"))}
    for arguments, code, told in [
        (["presets"], 2, "error: HOME: you have no home folder to look for presets in"),
        (["train", "--base", "nano", "--dry-run"], 6, "error: HOME: you have no home folder to keep a cache in"),
    ]:
        done = subprocess.run(
            [sys.executable, "-c", HOMELESS, *arguments],
            cwd=tmp_path,
            env=kept,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (code, "")
        assert told in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_odd_arguments_are_usage_errors_on_a_few_lines(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fluxtune.cli.app import main

    monkeypatch.chdir(tmp_path)
    odd = [["--no-such-option"], ["--" + LONG], ["--a\nb"], ["--\udcff"], ["--\x1b[31m"]]
    if command not in ("presets", "doctor"):
        sets = ["--set", "training.steps="]
        odd += [["--set", LONG], [*sets[:1], sets[1] + LONG], ["--set", "dataset.trigger=\udcff"]]
        odd += [["--config", "missing.toml"], ["--config", LONG], ["--config", "\udcff"], ["--config", "a\nb"]]
    for extra in odd:
        code = main([*COMMANDS[command], *extra])
        told = capsys.readouterr()
        assert (code, told.out) == (2, ""), extra[-1][:50]
        assert told.err.startswith("error: ")
        assert "unexpected" not in told.err
        assert "\nhint: " in told.err
        assert not any((letter < " " and letter != "\n") or letter == "\x7f" for letter in told.err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "validate", "caption", "sample", "export"])
def test_paths_that_lead_nowhere_have_the_code_of_what_is_missing(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fluxtune.cli.app import main

    monkeypatch.chdir(tmp_path)
    code = main([*COMMANDS[command], *(["--set", "model.base=nano"] if command != "export" else [])])
    told = capsys.readouterr()
    assert code == (2 if command == "sample" else 3)
    assert "there is no such" in told.out + told.err
