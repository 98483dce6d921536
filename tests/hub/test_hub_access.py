"""Whether `fluxtune doctor` knows what the hub would say to a download."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_hub import MODEL, Hub

from fluxtune.doctor.asking import ask
from fluxtune.doctor.hub import check_hub, has_to_be_downloaded
from fluxtune.events import Finding

TOKEN = "hf_aSecretThatNobodyMaySee"


@pytest.fixture
def look(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Finding]:
    """What is found of a model, with variables of the environment."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING")) or "proxy" in name.lower():
            monkeypatch.delenv(name)

    def look(base: str = MODEL, **environment: str) -> Finding:
        for name, value in {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), **environment}.items():
            monkeypatch.setenv(name, value)
        (finding,) = check_hub(ask("hub", base), base)
        assert TOKEN not in str(finding)
        return finding

    return look


def test_a_public_model_can_be_downloaded(hub: Hub, look: Callable[..., Finding]) -> None:
    assert look() == Finding("ok", "hub", f"{MODEL} can be downloaded from {hub.address} without a token")


def test_a_gated_model_wants_a_token(hub: Hub, look: Callable[..., Finding]) -> None:
    hub.gated = True
    finding = look()
    assert finding.severity == "warning"
    assert "no hub token" in finding.message and "hf auth login" in finding.hint


def test_a_licence_that_was_not_accepted_is_another_matter(hub: Hub, look: Callable[..., Finding]) -> None:
    hub.gated, hub.tokens = True, (TOKEN,)
    assert "has not accepted its licence" in look(HF_TOKEN=TOKEN).message
    hub.accepted = (TOKEN,)
    assert look(HF_TOKEN=TOKEN).message.endswith("with your token")


def test_a_wrong_token_is_told(look: Callable[..., Finding]) -> None:
    assert "refused your token" in look(HF_TOKEN=TOKEN).message


def test_a_hub_that_cannot_be_reached_is_a_warning(look: Callable[..., Finding]) -> None:
    finding = look(HF_ENDPOINT="http://127.0.0.1:9")
    assert (finding.severity, "cannot be reached" in finding.message) == ("warning", True)


def test_a_network_that_is_switched_off_is_not_used(hub: Hub, look: Callable[..., Finding]) -> None:
    finding = look(HF_HUB_OFFLINE="1")
    assert finding.severity == "warning" and "HF_HUB_OFFLINE" in finding.message
    assert hub.requests == []


def test_a_model_that_is_here_needs_no_hub(hub: Hub, look: Callable[..., Finding], tiny_flux: Path) -> None:
    assert look("nano").severity == "ok"
    assert look(str(tiny_flux)) == Finding("ok", "hub", f"{tiny_flux} is here, whole", where=str(tiny_flux))
    assert hub.requests == []
    assert not has_to_be_downloaded(ask("hub", "nano"))


def test_a_folder_that_lacks_files_is_an_error(tmp_path: Path, look: Callable[..., Finding]) -> None:
    (tmp_path / "half").mkdir()
    finding = look(str(tmp_path / "half"))
    assert finding.severity == "error" and "model_index.json" in finding.message
