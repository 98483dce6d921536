"""What is said of the libraries: the real ones, and broken ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fluxtune.doctor.asking import Broken, ask
from fluxtune.doctor.libraries import check_bitsandbytes, check_imports, check_python, check_torchao, check_versions
from fluxtune.environment.card import Card, Graphics

NO_CARD = Graphics(False)


def test_a_torchvision_that_does_not_fit_is_to_go(package: Callable[..., None]) -> None:
    package("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    (finding,) = check_imports(ask("libraries"))
    assert finding.severity == "error"
    assert "torchvision::nms" in finding.message
    assert "uninstall -y torchvision" in (finding.hint or "")


def test_a_library_that_cannot_be_imported_is_installed_again(package: Callable[..., None]) -> None:
    package("peft", "raise ImportError('half of it is missing')", version="0.21.2")
    found = list(check_imports(ask("libraries")))
    (finding,) = [each for each in found if "peft" in each.message]
    assert "half of it is missing" in finding.message
    assert (finding.hint or "").endswith("-m pip install --force-reinstall --no-deps peft==0.21.2")


def test_a_bitsandbytes_that_fails_on_the_card_says_why_and_what_else_there_is() -> None:
    answer = {"version": "0.50.2", "device": "cuda", "failed": {"nf4": "RuntimeError: no kernel image"}}
    ada = Graphics(True, cards=(Card(0, "RTX 4090", 24.0, 24.0, (8, 9)),))
    (finding,) = check_bitsandbytes(answer, ada)
    assert "nf4 does not work: RuntimeError: no kernel image" in finding.message
    assert "install --force-reinstall" in (finding.hint or "")
    assert "memory.base_precision=bf16" in (finding.hint or "")


def test_a_card_too_old_for_a_way_to_quantise_is_told_so() -> None:
    pascal = Graphics(True, cards=(Card(0, "GTX 1080", 8.0, 8.0, (6, 1)),))
    (finding,) = check_bitsandbytes({"version": "0.50.2", "device": "cuda", "failed": {"int8": "cublas"}}, pascal)
    assert "int8 needs a card of compute capability 7.5, this one has 6.1" in finding.message
    assert "reinstall" not in (finding.hint or "")


def test_a_broken_bitsandbytes_is_installed_again() -> None:
    (finding,) = check_bitsandbytes(Broken("it crashed with SIGSEGV"), NO_CARD)
    assert (finding.severity, "SIGSEGV" in finding.message) == ("error", True)
    assert "--force-reinstall --no-deps bitsandbytes==" in (finding.hint or "")


def test_one_that_gave_no_answer_in_time_is_not_called_broken() -> None:
    late = Broken("it gave no answer within 300 s", slow=True)
    for finding in (*check_imports(late), *check_bitsandbytes(late, NO_CARD)):
        assert finding.severity == "warning"
        assert "less busy" in (finding.hint or "")


def test_a_torchao_that_is_missing_is_a_note_and_a_broken_one_a_warning() -> None:
    (missing,) = check_torchao({"version": None})
    (broken,) = check_torchao(Broken("ImportError: needs torch 2.20"))
    assert (missing.severity, broken.severity) == ("note", "warning")
    assert "install --upgrade torchao" in (broken.hint or "")


def test_versions_are_compared_with_what_the_distribution_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "picky-1.0.dist-info"
    told.mkdir()
    asks = ["numpy>=99", "pillow>=1", "nowhere>=2,<3", "missing>=1; extra == 'test'", "old; python_version < '3'"]
    lines = ["Metadata-Version: 2.1", "Name: picky", "Version: 1.0", *(f"Requires-Dist: {each}" for each in asks)]
    (told / "METADATA").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (finding,) = check_versions("picky")
    assert finding.severity == "error"
    assert "numpy>=99 (" in finding.message and "nowhere<3,>=2 (missing)" in finding.message
    assert "pillow" not in finding.message and "missing>=1" not in finding.message and "old" not in finding.message
    assert (finding.hint or "").endswith('install "numpy>=99" "nowhere<3,>=2"')


def test_a_fluxtune_that_is_not_installed_is_a_note() -> None:
    (finding,) = check_versions("fluxtune-from-nowhere")
    assert finding.severity == "note"


def test_a_python_of_32_bits_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert next(check_python()).severity == "ok"
    monkeypatch.setattr("sys.maxsize", 2**31 - 1)
    assert next(check_python()).severity == "error"
