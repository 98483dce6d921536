"""What is read from nvidia-smi, of old drivers and new ones, and where it fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fake_nvidia_smi
import pytest

from fluxtune.environment import card
from fluxtune.environment.card import Card, Holder, look

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
ROOT = Path(__file__).parents[2]


def test_a_card_and_its_driver_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi.install(tmp_path, monkeypatch)
    found = look()
    assert (found.driver, found.cuda, found.trouble) == ("580.95.05", (13, 0), None)
    assert found.cards == (Card(0, "NVIDIA GeForce RTX 4090", 24564 / 1024, 24100 / 1024, (8, 9)),)


def test_the_label_of_newer_drivers_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi.install(tmp_path, monkeypatch, driver="610.43.02", cuda="13.3", banner=fake_nvidia_smi.NEW_BANNER)
    assert look().cuda == (13, 3)


@pytest.mark.parametrize(("driver", "cuda"), [("595.71", (13, 0)), ("570.12", (12, 0)), ("470.9", (11, 0))])
def test_where_the_banner_tells_no_cuda_the_driver_does(
    driver: str, cuda: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvidia_smi.install(tmp_path, monkeypatch, driver=driver, cuda="N/A")
    assert look().cuda == cuda


def test_a_driver_that_knows_no_capability_still_tells_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvidia_smi.install(tmp_path, monkeypatch, driver="470.57.02", cuda="11.4", capability=None)
    found = look()
    assert found.cards[0].capability is None
    assert found.cards[0].total == 24564 / 1024


def test_processes_are_read_also_where_their_memory_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "4242, /usr/bin/python3.11, 8192\n77, /opt/firefox/firefox, [N/A]"
    fake_nvidia_smi.install(tmp_path, monkeypatch, processes=rows)
    assert look().holders == (Holder(4242, "python3.11", 8.0), Holder(77, "firefox", None))


def test_a_card_without_memory_of_its_own_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi.install(tmp_path, monkeypatch, name="NVIDIA GB10", total="[N/A]", free="[N/A]", capability="12.1")
    assert look().cards == (Card(0, "NVIDIA GB10", None, None, (12, 1)),)


def test_its_words_are_kept_where_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi.install_broken(tmp_path, monkeypatch, fake_nvidia_smi.MISMATCH, 18)
    found = look()
    assert found.installed and found.cards == ()
    assert found.trouble == "Failed to initialize NVML: Driver/library version mismatch NVML library version: 580.95"


def test_one_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi.install_hanging(tmp_path, monkeypatch)
    monkeypatch.setattr(card, "PATIENCE", 0.3)
    assert "no answer within" in (look().trouble or "")


def test_without_nvidia_smi_there_is_nothing_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi.remove(monkeypatch)
    assert not look().installed


def test_what_the_set_up_asks_needs_nothing_installed() -> None:
    asked = "from fluxtune.environment import card, torch_builds; print(card.look().installed in (True, False))"
    alone = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {asked}"]
    assert subprocess.run(alone, capture_output=True, text=True, check=True).stdout == "True\n"
