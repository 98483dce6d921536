"""Wrong command lines by the thousand, made from the schema: one mistake each, and one message that names it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wrong_configs import BOUND, SPECS, cases, contradiction
from wrong_settings import section_paths

from fluxtune.config.settings import sections, settings

FOLDER = Path(__file__).parent


def run(seed: int, count: int, folder: Path) -> dict[str, Any]:
    """The report of `run_wrong_configs.py`, run where there is nothing."""
    places = {"FLUXTUNE_CACHE": "cache", "HF_HOME": "hub", "FLUXTUNE_CONFIG": "config", "TMPDIR": "temporary"}
    environment = {**os.environ, **{name: str(folder / place) for name, place in places.items()}}
    for name in ("temporary", "work"):
        (folder / name).mkdir()
    done = subprocess.run(
        [sys.executable, str(FOLDER / "run_wrong_configs.py"), str(seed), str(count)],
        env={**environment, "PYTHONPATH": os.pathsep.join([str(FOLDER.parents[1]), os.environ.get("PYTHONPATH", "")])},
        cwd=folder / "work",
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def check(report: dict[str, Any], count: int) -> None:
    assert not report["failed"], json.dumps(report["failed"])
    assert report["run"] == count
    assert (report["imported"], report["caches"], report["logs"]) == ([], [], [])


def test_wrong_configurations_are_told_by_key_place_and_mend_and_start_no_work(tmp_path: Path) -> None:
    report = run(seed=2026, count=300, folder=tmp_path)
    check(report, 300)
    assert len(report["kinds"]) > 60


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_five_thousand_wrong_configurations_are_told(tmp_path: Path, seed: int) -> None:
    check(run(seed, count=1000, folder=tmp_path), 1000)


def test_the_mistakes_are_made_of_every_setting_and_section() -> None:
    assert {spec.key for spec in SPECS} == set(settings())
    assert {".".join(path) for path in section_paths()} == set(sections())
    assert set(settings()) >= BOUND


def test_the_driver_sees_what_is_not_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from run_wrong_configs import faults

    monkeypatch.chdir(tmp_path)
    case = next(case for case in cases(0) if case.where.startswith("fluxtune.toml:"))
    assert faults(case, tmp_path) == []
    from dataclasses import replace

    assert "not at" in faults(replace(case, where="fluxtune.toml:99"), tmp_path)[0]
    assert "is not in the message" in faults(replace(case, said=("no such words",)), tmp_path)[0]
    assert faults(replace(case, arguments=("presets",)), tmp_path)[0] == "exit code 0"


def test_contradictions_are_found_in_every_way_they_come_about() -> None:
    import random

    from wrong_configs import CONTRADICTIONS

    made = {contradiction(random.Random(seed)).said for seed in range(200)}
    assert made == set(CONTRADICTIONS.values())


@pytest.mark.parametrize(
    ("way", "arguments"),
    [("fluxtune.toml", []), ("c.toml", ["--config", "c.toml"]), ("c.toml", ["--preset", "./c.toml"])],
)
@pytest.mark.parametrize("what", ["folder", "pipe", "device", "loop", "nowhere", "large", "many keys"])
def test_what_is_no_file_of_settings_is_refused_at_once(
    fluxtune_in: Callable[..., tuple[int, str]], tmp_path: Path, what: str, way: str, arguments: list[str]
) -> None:
    file = tmp_path / way
    make: dict[str, Callable[[], object]] = {
        "folder": file.mkdir,
        "pipe": lambda: os.mkfifo(file),
        "device": lambda: file.symlink_to("/dev/zero"),
        "loop": lambda: file.symlink_to(file),
        "nowhere": lambda: file.symlink_to("nowhere"),
        "large": lambda: file.write_bytes(b"# a comment\n" * 900_000),
        "many keys": lambda: file.write_text("".join(f"a{number} = 1\n" for number in range(100_000))),
    }
    said = {
        "folder": "is a directory",
        "pipe": "this is no file, but a pipe or a device",
        "device": "this is no file, but a pipe or a device",
        "loop": "too many levels of symbolic links",
        "nowhere": "no such file or directory",
        "large": "this is too large for settings: 10.3 MiB, wanted at most 1",
        "many keys": "this is too large for settings",
    }
    make[what]()
    code, told = fluxtune_in("train", "photos", *arguments)
    assert code == 2
    assert told.count("error: ") == 1
    assert (arguments[-1] if arguments else way) in told
    assert said[what] in told


def test_of_very_many_problems_the_first_are_told(fluxtune_in: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "fluxtune.toml").write_text("".join(f"qq{number} = 1\n" for number in range(50_000)))
    code, told = fluxtune_in("train", "photos")
    assert (code, told.count("error: ")) == (2, 51)
    assert "error: fluxtune.toml:1: unknown setting qq0\n" in told
    assert "error: fluxtune.toml: and 49,950 problems more\n" in told


def test_lists_nested_as_deeply_as_the_parser_goes_are_told(
    fluxtune_in: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    for depth in (100, 300, 390, 400, 500):
        (tmp_path / "fluxtune.toml").write_text(f"[lora]\nrank = {'[' * depth}1{']' * depth}\n")
        code, told = fluxtune_in("train", "photos")
        assert (code, told.count("error: ")) == (2, 1)
        assert told.startswith("error: fluxtune.toml:2: ")


def test_a_data_set_in_a_loop_of_links_is_a_message(
    fluxtune_in: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    (tmp_path / "photos").symlink_to("photos")
    code, told = fluxtune_in("train", "photos", "--base", "nano", "--dry-run")
    assert code == 3
    assert "error: " in told
    assert "unexpected" not in told


@pytest.fixture
def fluxtune_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run a command in the folder: its exit code and what it says on stderr."""
    from fluxtune.cli.app import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        code = int(main(list(arguments)))
        return code, capsys.readouterr().err

    return run
