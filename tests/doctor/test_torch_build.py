"""What is said of torch, with the command that brings the right one."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from fluxtune.doctor import mends, torch_build
from fluxtune.doctor.asking import Broken
from fluxtune.doctor.torch_build import check_torch
from fluxtune.environment.card import Card, Graphics
from fluxtune.events import Finding

ADA = Graphics(True, driver="580.95", cuda=(13, 0), cards=(Card(0, "RTX 4090", 24.0, 23.5, (8, 9)),))
BLACKWELL = Graphics(True, driver="570.86", cuda=(12, 8), cards=(Card(0, "RTX 5090", 31.8, 31.0, (12, 0)),))
NO_CARD = Graphics(False)
WORKS = {
    "version": "2.13.0+cu130",
    "cuda": "13.0",
    "hip": None,
    "available": True,
    "kernels": ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"],
    "cards": [{"name": "RTX 4090", "capability": [8, 9], "total": 23.6}],
    "failed": None,
    "warnings": [],
}
FOR_THE_PROCESSOR = {**WORKS, "version": "2.13.0+cpu", "cuda": None, "available": False, "kernels": [], "cards": []}


@pytest.fixture(autouse=True)
def this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(mends.importlib.util, "find_spec", lambda name: True)


def of(torch: dict[str, Any] | Broken, graphics: Graphics) -> Finding:
    (finding,) = check_torch(torch, graphics)
    return finding


def test_one_that_computes_on_the_card_is_well() -> None:
    assert of(WORKS, ADA) == Finding("ok", "torch", "2.13.0+cu130, built for CUDA 13.0; it computes on RTX 4090")


def test_one_for_the_processor_is_well_without_a_card_and_wrong_with_one() -> None:
    assert of(FOR_THE_PROCESSOR, NO_CARD).severity == "ok"
    finding = of(FOR_THE_PROCESSOR, ADA)
    assert finding.severity == "error"
    assert finding.hint == (
        "python -m pip install torch==2.13.0+cu130 --index-url https://download.pytorch.org/whl/cu130"
    )


def test_one_for_the_processor_is_mended_as_the_driver_takes_it() -> None:
    assert "torch==2.11.0+cu128" in (of(FOR_THE_PROCESSOR, BLACKWELL).hint or "")


def test_a_driver_too_old_for_it_gets_an_older_cuda() -> None:
    old = Graphics(True, driver="550.54", cuda=(12, 4), cards=ADA.cards)
    finding = of({**WORKS, "available": False, "warnings": ["the driver is too old"]}, old)
    assert finding.severity == "error"
    assert "550.54 is too old" in finding.message
    assert (finding.hint or "").startswith("python -m pip install torch==2.13.0+cu126 --index-url")


def test_a_driver_of_the_same_major_version_is_not_too_old() -> None:
    old = Graphics(True, driver="550.54", cuda=(12, 4), cards=ADA.cards)
    assert of({**WORKS, "version": "2.13.0+cu126", "cuda": "12.6"}, old).severity == "ok"


def test_one_without_kernels_for_the_card_is_replaced() -> None:
    pascal = Graphics(True, driver="580.95", cuda=(13, 0), cards=(Card(0, "GTX 1080", 8.0, 7.9, (6, 1)),))
    finding = of({**WORKS, "cards": [{"name": "GTX 1080", "capability": [6, 1], "total": 7.9}]}, pascal)
    assert finding.severity == "error"
    assert "no kernels for GTX 1080 (compute capability 6.1)" in finding.message
    assert "torch==2.13.0+cu126" in (finding.hint or "")


def test_code_that_newer_cards_can_compile_is_enough() -> None:
    future = {**WORKS, "cards": [{"name": "RTX 9090", "capability": [14, 0], "total": 64.0}]}
    assert of(future, ADA).severity == "error"
    assert of({**future, "kernels": [*WORKS["kernels"], "compute_120"]}, ADA).severity == "ok"


def test_a_product_that_fails_on_the_card_is_told() -> None:
    finding = of({**WORKS, "failed": "RuntimeError: no kernel image is available"}, ADA)
    assert finding.severity == "error" and "no kernel image" in finding.message


def test_cards_hidden_by_the_environment_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    finding = of({**WORKS, "available": False, "failed": "RuntimeError: No CUDA GPUs are available"}, ADA)
    assert "CUDA_VISIBLE_DEVICES='-1'" in finding.message
    assert finding.hint == "unset CUDA_VISIBLE_DEVICES"


def test_any_other_reason_is_told_in_the_words_of_torch() -> None:
    finding = of({**WORKS, "available": False, "failed": "RuntimeError: CUDA unknown error"}, ADA)
    assert finding.severity == "error" and "CUDA unknown error" in finding.message


def test_one_that_cannot_be_imported_is_installed_again() -> None:
    finding = of(Broken("OSError: libcudart.so.13: cannot open shared object file"), ADA)
    assert finding.severity == "error" and "libcudart.so.13" in finding.message
    assert (finding.hint or "").startswith("python -m pip install --force-reinstall torch==2.13.0+cu130 ")


def test_one_that_is_missing_is_installed() -> None:
    finding = of(Broken("ModuleNotFoundError: No module named 'torch'"), NO_CARD)
    assert finding.message == "torch is not installed"
    assert finding.hint == "python -m pip install torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu"


def test_a_missing_runtime_of_windows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_build.platform, "system", lambda: "Windows")
    finding = of(Broken("OSError: [WinError 126] The specified module could not be found: c10.dll"), ADA)
    assert (finding.hint or "").startswith("winget install Microsoft.VCRedist")


def test_a_card_that_no_torch_of_ours_is_built_for_is_told() -> None:
    kepler = Graphics(True, driver="470.1", cuda=(11, 4), cards=(Card(0, "GTX 780", 3.0, 3.0, (3, 5)),))
    assert "built for this card" in (of(FOR_THE_PROCESSOR, kepler).hint or "")


def test_the_command_names_the_python_where_no_environment_is_active(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIRTUAL_ENV")
    monkeypatch.setattr(sys, "executable", "/home/a b/bin/python")
    assert mends.pip("install", "numpy>=2,<3") == '"/home/a b/bin/python" -m pip install "numpy>=2,<3"'
    monkeypatch.setattr(mends.importlib.util, "find_spec", lambda name: None)
    assert mends.pip("install", ".") == 'uv pip install . --python "/home/a b/bin/python"'
