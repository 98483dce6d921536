"""How often the checks are right, on data sets with known problems (`golden_set.py`)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from golden_set import CHANGES, Score, scores

from fluxtune.dataset.findings import CHECKS

PAGE = (Path(__file__).parent.parent.parent / "docs" / "validate.md").read_text(encoding="utf-8")
LEAST_RECALL = {"blurred": 0.93, "borders": 0.85, "near-duplicate": 0.98}
"""What looks at pixels may miss something; all other checks must not."""


LEAST_PRECISION = {"blurred": 0.99}


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Score], dict[str, float]]:
    return scores(tmp_path_factory.mktemp("golden"))


@pytest.mark.xdist_group("golden")
def test_what_the_checks_find_is_there(golden: tuple[dict[str, Score], dict[str, float]]) -> None:
    for check, score in golden[0].items():
        assert score.precision >= LEAST_PRECISION.get(check, 1.0), (check, score)


@pytest.mark.xdist_group("golden")
def test_the_checks_find_what_is_there(golden: tuple[dict[str, Score], dict[str, float]]) -> None:
    for check, score in golden[0].items():
        assert score.recall >= LEAST_RECALL.get(check, 1.0), (check, score)


@pytest.mark.xdist_group("golden")
def test_the_page_states_the_figures(golden: tuple[dict[str, Score], dict[str, float]]) -> None:
    told = re.findall(r"^\| `([a-z0-9-]+)` \| (\d+) \| (\d+) \| (\d+) \|", PAGE, re.MULTILINE)
    assert {check: Score(*map(int, figures)) for check, *figures in told} == golden[0]


def test_everything_that_is_measured_in_pixels_is_in_the_golden_set() -> None:
    assert set(CHANGES) == set(LEAST_RECALL) <= set(CHECKS)
