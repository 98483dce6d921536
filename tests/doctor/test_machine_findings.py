"""What is said of memory and disks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from fluxtune.doctor import machine
from fluxtune.doctor.machine import check_disks, check_memory
from fluxtune.events import Finding


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Finding]:
    """Give the machine so many GiB of memory and of swap."""

    def give(total: float, swap: float, system: str = "Linux", wsl: bool = False) -> Finding:
        whole = SimpleNamespace(total=total * 2**30, available=total * 2**29)
        monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: whole)
        monkeypatch.setattr(machine.psutil, "swap_memory", lambda: SimpleNamespace(total=swap * 2**30))
        monkeypatch.setattr(machine.platform, "system", lambda: system)
        monkeypatch.setattr(machine, "in_wsl", lambda: wsl)
        monkeypatch.setattr(machine, "_container_limit", lambda: float("inf"))
        (finding,) = check_memory()
        return finding

    return give


def test_enough_memory_is_well_and_little_is_a_warning(memory: Callable[..., Finding]) -> None:
    assert memory(32, 0).severity == "ok"
    assert memory(15.5, 0).severity == "ok"
    assert memory(8, 0).severity == "warning"


def test_in_wsl_the_limit_is_where_to_look(memory: Callable[..., Finding]) -> None:
    assert ".wslconfig" in memory(8, 2, wsl=True).hint


def test_windows_is_asked_for_its_page_file(memory: Callable[..., Finding]) -> None:
    assert "page file" in memory(16, 2, system="Windows").hint
    assert memory(16, 16, system="Windows").severity == "ok"
    assert memory(16, 2, system="Linux").severity == "ok"


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLUXTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def disks(folders: Path, free: float, download: bool, monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What is said where each folder's disk has so many GB free; all of them are on one disk."""
    monkeypatch.setattr(machine, "free_space", lambda folder: int(free * 1e9))
    return list(check_disks(folders / "hub", download, folders / "runs"))


def test_room_for_all_is_well(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = disks(folders, 40, True, monkeypatch)
    assert [finding.severity for finding in found] == ["ok"] * 3
    assert [finding.where for finding in found] == [str(folders / name) for name in ("hub", "cache", "runs")]


def test_a_disk_too_small_for_the_base_model_is_an_error(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, *_ = disks(folders, 20, True, monkeypatch)
    assert models.severity == "error" and "34 GB" in models.message
    assert models.hint == "free 14 GB, or set HF_HOME to a folder on another disk"


def test_a_model_that_is_here_needs_no_room(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {finding.severity for finding in disks(folders, 20, False, monkeypatch)} == {"ok"}


def test_folders_on_one_disk_share_its_room(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = disks(folders, 36, True, monkeypatch)
    assert [finding.severity for finding in found] == ["ok", "ok", "error"]


def test_a_folder_that_may_not_be_written_is_an_error(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "access", lambda folder, mode: False)
    models, *_ = disks(folders, 100, True, monkeypatch)
    assert models.severity == "error" and "may not write" in models.message


def test_without_an_answer_of_the_hubs_client_its_cache_is_left_out(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_space", lambda folder: 10**12)
    assert len(list(check_disks(None, True, folders / "runs"))) == 2
