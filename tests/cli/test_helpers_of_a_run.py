"""Of several processes only the main one speaks."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture
def as_second(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["presets"],
        ["--version"],
        ["train", "--help"],
        ["train", "--preset", "nano", "--explain"],
        ["train", "--preset", "nano", "--dry-run"],
        ["train", "--no-such-flag"],
        ["no-such-command"],
    ],
)
def test_another_process_than_the_main_one_says_nothing(
    arguments: list[str], as_second: None, fluxtune: Callable
) -> None:
    assert fluxtune(*arguments) == (0, "", "")


def test_a_bug_in_another_process_is_told_by_itself(
    as_second: None, fluxtune: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("fluxtune.training.worker.work_along", fail)
    outcome = fluxtune("train", "--preset", "nano")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("error: unexpected KeyError: 'a bug'")
