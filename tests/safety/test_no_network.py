"""With everything on this machine no command touches the network, in the offline mode or out of it; a run goes on with
the commit of a hub model that it was begun with."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from fluxtune.cli.app import main
from fluxtune.runs import Run

COMMITS = ("1" * 40, "2" * 40)
MODEL = "someone/tiny-flux"

_BLOCK = """
import os, socket

def _refused(*arguments, **options):
    with open(os.environ["NETWORK_LOG"], "a") as log:
        log.write(repr(arguments[-1]) + "\\n")
    raise OSError("no network in this test")

def _connect(self, address, _plain=socket.socket.connect):
    return _plain(self, address) if self.family == getattr(socket, "AF_UNIX", None) else _refused(address)

socket.socket.connect = socket.socket.connect_ex = _connect
socket.create_connection = socket.getaddrinfo = socket.gethostbyname = _refused
"""
"""Runs at the start of each Python that a command starts, and here."""


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Gives what was tried to be reached since; every try fails."""
    log, site = tmp_path / "network.log", tmp_path / "site"
    log.write_text("")
    site.mkdir()
    (site / "sitecustomize.py").write_text(_BLOCK)
    monkeypatch.setenv("NETWORK_LOG", str(log))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *sys.path]))
    for name in list(os.environ):
        if name.startswith("HF_") or "proxy" in name.lower():
            monkeypatch.delenv(name)
    for owner, name in ((socket.socket, "connect"), (socket.socket, "connect_ex")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    for name in ("create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, getattr(socket, name))
    exec(compile(_BLOCK, "block", "exec"), {})
    return log.read_text


def settings(**others: object) -> list[str]:
    values = {
        "dataset.resolution": 128,
        "lora.rank": 2,
        "training.steps": 1,
        "training.precision": '"fp32"',
        "training.optimizer": '"adamw"',
        "training.device": '"cpu"',
        "memory.base_precision": '"fp32"',
        "memory.text_precision": '"fp32"',
        "memory.recompute": '"none"',
        "previews.every": 1,
        "previews.steps": 1,
        **others,
    }
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def test_the_network_is_blocked_where_these_tests_need_it(no_network: Callable[[], str]) -> None:
    with pytest.raises(OSError, match="no network"):
        socket.create_connection(("127.0.0.1", 9))
    with pytest.raises(OSError, match="no network"):
        socket.socket().connect(("127.0.0.1", 9))
    assert len(no_network().splitlines()) == 2


def test_no_command_touches_the_network_when_all_is_here(
    no_network: Callable[[], str], tiny_flux: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lora = tmp_path / "runs" / "mug" / "mug.safetensors"
    (pictures / "2.txt").unlink()
    base = ["--base", str(tiny_flux)]
    for command in (
        ["caption", str(pictures), "--set", 'captioning.captioner="nano"', "--set", "captioning.max_tokens=4"],
        ["validate", str(pictures), "--report", "page.html"],
        ["train", str(pictures), *base, "--dry-run", *settings()],
        ["train", str(pictures), *base, "--output", str(lora.parent), *settings()],
        ["train", "--resume", str(lora.parent), "--steps", "2"],
        ["sample", "a star", "--lora", str(lora), "--size", "64x64", "--steps", "1"],
        ["export", "dataset", str(pictures), "--format", "kohya", "--output", "for-kohya"],
        ["doctor", "--base", "nano"],
        ["presets"],
    ):
        assert main(command) in (0, 3, 9) if command[0] == "doctor" else main(command) == 0, command
        assert no_network() == "", command


@pytest.fixture
def cached(tiny_flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with one model in two commits; ``main`` is the first one."""
    model = tmp_path / "hub" / "models--someone--tiny-flux"
    for commit in COMMITS:
        shutil.copytree(tiny_flux, model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMITS[0])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return model


def test_a_run_records_the_commit_of_its_base_and_goes_on_with_it(
    no_network: Callable[[], str], cached: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "mug"
    assert main(["train", str(pictures), "--base", MODEL, "--output", str(run), *settings()]) == 0
    assert tomllib.loads((run / "config.toml").read_text())["model"]["revision"] == COMMITS[0]
    assert json.loads((run / "origins.json").read_text())["model.revision"] == "the hub's commit of that time"
    assert Run.open(run).state.facts["base"]["commit"] == COMMITS[0]
    (cached / "refs" / "main").write_text(COMMITS[1])
    (cached / "snapshots" / COMMITS[1] / "model_index.json").write_text("{}")
    assert main(["train", "--resume", str(run), "--steps", "2"]) == 0
    assert Run.open(run).state.facts["base"]["commit"] == COMMITS[0]
    assert no_network() == ""


@pytest.mark.parametrize("how", ["setting", "HF_HUB_OFFLINE"])
def test_the_offline_mode_asks_nobody_for_what_is_missing(
    no_network: Callable[[], str],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", how == "HF_HUB_OFFLINE")
    offline = ["--set", "model.offline=true"] if how == "setting" else []
    for command in (
        ["train", str(pictures), "--base", MODEL, *settings(), *offline],
        ["sample", "a star", "--base", MODEL, *offline],
        ["caption", str(pictures), "--set", 'captioning.captioner="someone/captioner"', *offline],
    ):
        if command[0] == "caption":
            (pictures / "2.txt").unlink()
        assert main(command) == 5
        assert "the network is switched off" in capsys.readouterr().err
        assert no_network() == ""
