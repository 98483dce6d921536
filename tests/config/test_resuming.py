from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fluxtune.config.resuming import ON_RESUME, Change, changed_settings, row_of
from fluxtune.config.schema import Config
from fluxtune.config.settings import settings


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Change]:
    both = (Config.model_validate({"model": before}), Config.model_validate({"model": after}))
    return {changed.key: changed.change for changed in changed_settings(*both)}


@pytest.mark.parametrize("key", settings())
def test_of_every_setting_it_is_said_whether_it_may_change_when_a_run_goes_on(key: str) -> None:
    assert row_of(key) is not None, f"give {key} a row in ON_RESUME"


def test_no_row_is_about_nothing() -> None:
    assert {row_of(key) for key in settings()} == set(ON_RESUME)


def test_equal_settings_have_no_changes() -> None:
    assert changes({}, {}) == {}


def test_a_base_model_may_lie_elsewhere_and_may_not_be_another_one(tmp_path: Path) -> None:
    begun = {"base": "black-forest-labs/FLUX.1-dev"}
    assert changes(begun, {"base": str(tmp_path)}) == {"model.base": Change.FREE}
    assert changes(begun, {"base": "black-forest-labs/FLUX.1-schnell"}) == {"model.base": Change.FIXED}
    assert changes({**begun, "vae": str(tmp_path)}, begun) == {"model.vae": Change.FIXED}


def test_a_change_reads_as_a_diff() -> None:
    both = (Config(), Config.model_validate({"lora": {"alpha": 8.0}, "dataset": {"trigger": "zorvex"}}))
    assert [str(changed) for changed in changed_settings(*both)] == [
        'dataset.trigger was unset, is now "zorvex"',
        "lora.alpha was unset, is now 8.0",
    ]
