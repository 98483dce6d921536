from __future__ import annotations

from pathlib import Path

import pytest

from fluxtune.doctor.presets import check_presets
from fluxtune.environment.card import Card, Graphics
from fluxtune.events import Finding


def found(total: float | None, free: float | None = None) -> Finding:
    card = Card(0, "RTX", total, total if free is None else free, (8, 9))
    (finding,) = check_presets(Graphics(True, cards=(card,)))
    return finding


@pytest.mark.parametrize(
    ("total", "largest", "too_large"),
    [
        (5.99, "6gb", "8gb"),
        (11.99, "12gb", "16gb"),
        (15.99, "16gb", "24gb"),
        (23.99, "24gb", "48gb"),
        (79.6, "80gb", ""),
    ],
)
def test_a_card_takes_the_presets_of_its_size_and_smaller(total: float, largest: str, too_large: str) -> None:
    finding = found(total)
    assert finding.severity == "ok"
    assert "6gb" in finding.message
    assert finding.message.endswith(f"the largest for it is {largest}")
    assert not too_large or f" {too_large}," not in f" {finding.message},"


def test_a_card_of_which_little_is_free_is_planned_for_what_is() -> None:
    assert found(15.99, free=9.5).message.endswith("16gb, which is planned for what is free: 9.5 GiB now")


def test_a_card_that_is_too_small_for_all_is_told_how_to_ask() -> None:
    finding = found(4.0)
    assert finding.severity == "warning"
    assert "4.0 GiB" in finding.message
    assert finding.hint is not None and "--preset 6gb --dry-run" in finding.hint


@pytest.mark.parametrize("graphics", [Graphics(False), Graphics(True, cards=(Card(0, "GB10", None, None, (12, 1)),))])
def test_without_a_card_of_known_size_there_is_the_embedded_model(graphics: Graphics) -> None:
    (finding,) = check_presets(graphics)
    assert (finding.severity, finding.check) == ("note", "presets")
    assert "nano" in finding.message


def test_settings_in_the_working_folder_are_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fluxtune.toml").write_text("no toml")
    monkeypatch.chdir(tmp_path)
    assert found(24.0).severity == "ok"
