"""What is said of driver and cards."""

from __future__ import annotations

import pytest

from fluxtune.doctor import graphics as told
from fluxtune.doctor import mends
from fluxtune.doctor.graphics import check_cards, check_driver
from fluxtune.environment.card import Card, Graphics, Holder
from fluxtune.events import Finding

ADA = Card(0, "RTX 4090", 24.0, 23.5, (8, 9))
WELL = Graphics(installed=True, driver="580.95.05", cuda=(13, 0), cards=(ADA,))


@pytest.fixture(autouse=True)
def plain_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mends, "in_wsl", lambda: False)
    monkeypatch.setattr(mends.platform, "system", lambda: "Linux")
    monkeypatch.setattr(mends, "_distribution", lambda: "ubuntu debian")


def driver_of(graphics: Graphics, torch_sees_a_card: bool = False) -> Finding:
    (finding,) = check_driver(graphics, torch_sees_a_card)
    return finding


def test_a_driver_that_works_is_well() -> None:
    assert driver_of(WELL) == Finding("ok", "driver", "580.95.05: it takes CUDA 13.0")


@pytest.mark.parametrize(
    ("words", "mend"),
    [
        ("Failed to initialize NVML: Driver/library version mismatch", "sudo reboot"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", "ubuntu-drivers install"),
        ("Failed to initialize NVML: GPU access blocked by the operating system", "wsl --update"),
        ("Unable to determine the device handle for GPU 0000:01:00.0: Unknown Error", "off the bus"),
        ("Failed to initialize NVML: Unknown Error", "container"),
        ("No devices were found", "dmesg"),
        ("something never heard of", "sudo reboot"),
    ],
)
def test_each_trouble_of_nvidia_smi_has_its_mend(words: str, mend: str) -> None:
    finding = driver_of(Graphics(installed=True, trouble=words))
    assert finding.severity == "error"
    assert words in finding.message
    assert mend in (finding.hint or "") and "{" not in (finding.hint or "")


def test_a_card_without_a_driver_is_an_error_and_no_card_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(told, "has_nvidia_hardware", lambda: True)
    finding = driver_of(Graphics(installed=False))
    assert (finding.severity, finding.hint) == ("error", "sudo ubuntu-drivers install && sudo reboot")
    monkeypatch.setattr(told, "has_nvidia_hardware", lambda: False)
    assert driver_of(Graphics(installed=False)).severity == "warning"


def test_a_container_without_nvidia_smi_is_no_trouble() -> None:
    assert driver_of(Graphics(installed=False), torch_sees_a_card=True).severity == "note"


def test_a_driver_that_takes_no_torch_of_ours_is_an_error() -> None:
    finding = driver_of(Graphics(installed=True, driver="470.57", cuda=(11, 4), cards=(ADA,)))
    assert finding.severity == "error"
    assert "470.57" in finding.message and "CUDA 11.4" in finding.message


def test_a_card_is_described_and_well() -> None:
    (finding,) = check_cards(WELL)
    assert finding == Finding("ok", "card", "RTX 4090, 24.0 GiB, compute capability 8.9")


def test_a_card_before_ampere_is_said_to_be_slow() -> None:
    cards = (Card(0, "RTX 2080", 8.0, 8.0, (7, 5)),)
    assert [finding.check for finding in check_cards(Graphics(True, cards=cards))] == ["card", "bf16"]


def test_who_holds_the_memory_is_named_the_largest_first() -> None:
    holders = (Holder(7, "firefox", 0.5), Holder(4242, "python", 9.0), Holder(8, "Xorg", None))
    cards = (Card(0, "RTX 4090", 24.0, 14.0, (8, 9)),)
    _, finding = check_cards(Graphics(True, cards=cards, holders=holders))
    assert (finding.severity, finding.check) == ("warning", "card-memory")
    assert "14.0 of 24.0 GiB" in finding.message
    assert finding.hint == (
        "close what you can spare of: python (process 4242, 9.0 GiB), firefox (process 7, 0.5 GiB), Xorg (process 8)"
    )
