"""Libraries that are broken in every way are an answer, not an end."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from fluxtune.doctor.asking import Broken, ask


def test_a_library_that_works_answers() -> None:
    answer = ask("torch")
    assert isinstance(answer, dict)
    assert answer["version"] == __import__("torch").__version__
    assert "torch" not in ask("torchao")


def test_an_import_error_is_told_in_its_words(package: Callable[..., None]) -> None:
    package("torch", "raise ImportError('libcudart.so.13: cannot open shared object file')")
    assert ask("torch") == Broken("ImportError: libcudart.so.13: cannot open shared object file")


@pytest.mark.skipif(sys.platform == "win32", reason="a crash has another name there")
def test_a_crash_is_told_with_its_place(package: Callable[..., None]) -> None:
    package("bitsandbytes", "import ctypes\nctypes.string_at(0)\n")
    answer = ask("bitsandbytes")
    assert isinstance(answer, Broken)
    assert "crashed with SIGSEGV" in answer.words
    assert "File " in answer.words


def test_one_that_hangs_is_given_up(package: Callable[..., None]) -> None:
    package("torch", "import time\ntime.sleep(60)\n")
    assert ask("torch", patience=1.0) == Broken("it gave no answer within 1 s", slow=True)


def test_one_that_ends_the_process_is_told(package: Callable[..., None]) -> None:
    package("torch", "import os\nos._exit(3)\n")
    assert ask("torch") == Broken("it ended with exit code 3")


def test_what_a_library_prints_is_no_part_of_the_answer(package: Callable[..., None]) -> None:
    package("torchao", "print('welcome'); raise RuntimeError('no')")
    assert ask("torchao") == Broken("RuntimeError: no")
