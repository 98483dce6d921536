"""Which torch a card and its driver get."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fluxtune.environment.torch_builds import BUILDS, CPU, build_for, has_kernels

CONSTRAINTS = (Path(__file__).parents[2] / "constraints.txt").read_text(encoding="utf-8")
TESTED = re.findall(r"^torch==(.+)$", CONSTRAINTS, re.MULTILINE)[0]


@pytest.mark.parametrize(
    ("driver", "card", "build"),
    [
        pytest.param((13, 0), (8, 9), "cu130", id="Ada, new driver"),
        pytest.param((13, 3), (12, 0), "cu130", id="Blackwell, newer driver"),
        pytest.param((13, 0), (12, 1), "cu130", id="the code of Blackwell runs on its later cards"),
        pytest.param((12, 4), (8, 9), "cu126", id="CUDA 12.4 takes all of CUDA 12"),
        pytest.param((12, 8), (12, 0), "cu128", id="Blackwell, driver before 580"),
        pytest.param((13, 0), (6, 1), "cu126", id="Pascal is in CUDA 12 alone"),
        pytest.param((13, 0), (7, 0), "cu126", id="Volta, too"),
        pytest.param((13, 0), (7, 5), "cu130", id="Turing is not"),
        pytest.param(None, (8, 6), "cu130", id="driver unknown"),
        pytest.param((13, 0), None, "cu130", id="card unknown"),
        pytest.param((11, 4), (8, 6), None, id="driver too old"),
        pytest.param((12, 8), (3, 5), None, id="card too old"),
    ],
)
def test_a_card_gets_the_build_that_it_and_its_driver_take(
    driver: tuple[int, int] | None, card: tuple[int, int] | None, build: str | None
) -> None:
    found = build_for(driver, card)
    assert (found and found.name) == build


def test_the_releases_are_the_tested_one_or_an_older_one_that_fluxtune_takes() -> None:
    assert CPU.torch == TESTED
    assert BUILDS[0].torch == TESTED
    for build in BUILDS:
        assert (2, 11) <= tuple(map(int, build.torch.split(".")[:2])) <= tuple(map(int, TESTED.split(".")[:2]))


def test_machine_code_runs_on_later_cards_of_its_kind_and_no_others() -> None:
    assert has_kernels([(8, 6)], (8, 9))
    assert not has_kernels([(8, 9)], (8, 6))
    assert not has_kernels([(8, 0), (9, 0)], (12, 0))
