"""The zoo of bad inputs: each gives its own named finding, and nothing else that is not true of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from zoo import ZOO

from fluxtune.config.dataset import FolderConfig
from fluxtune.config.schema import Config
from fluxtune.dataset.caption_checks import ESTIMATES
from fluxtune.dataset.validation import Report, validate
from fluxtune.events import ignore

ALSO_TRUE = {"few-pictures", "missing-caption", "same-caption", "small"}
"""Of so small a data set of one photograph, without captions unless they are what it is about."""
EITHER = ({"damaged", "not-a-picture"},)
"""Where what comes first depends on how far the decoder gets."""


@pytest.mark.parametrize("animal", ZOO)
def test_each_animal_of_the_zoo_gives_its_own_finding(tmp_path: Path, animal: str) -> None:
    make, wanted = ZOO[animal]
    make(tmp_path)
    report = report_of(tmp_path)
    found = {each.check for each in report.findings if each.severity != "note"}
    if wanted in EITHER:
        assert len(found & wanted) == 1
    else:
        assert wanted <= found
    assert found - wanted <= ALSO_TRUE
    assert len(report.survey.seen) == len([file for file in tmp_path.iterdir() if file.suffix in PICTURES])


PICTURES = (".png", ".jpg", ".webp", ".tif", ".bmp")


def report_of(folder: Path) -> Report:
    config = Config.model_validate({"dataset": {"folders": [FolderConfig(path=str(folder))], "resolution": [512]}})
    return validate(config, ESTIMATES, 16, ignore)
