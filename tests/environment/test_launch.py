from __future__ import annotations

import os

import pytest
import torch

from fluxtune.environment.device import pick_device, takes_cards
from fluxtune.environment.launch import Place, launched_for_the_processor, place, quiet_connections, started_alone
from fluxtune.errors import UsageError

SECOND_OF_FOUR = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
}
NAMES = (*SECOND_OF_FOUR, "ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION")


@pytest.fixture(autouse=True)
def not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def launched(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> None:
    for name, value in {**SECOND_OF_FOUR, **changes}.items():
        if value is not None:
            monkeypatch.setenv(name, value)


def cards(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)


def test_a_launcher_says_which_of_the_processes_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch)
    assert place() == Place(3, 4, 1, 2)
    assert not place().is_main


@pytest.mark.parametrize("changes", [{"RANK": None}, {"WORLD_SIZE": "many"}, {"MASTER_ADDR": None}])
def test_without_all_that_a_launcher_says_the_process_is_alone(
    changes: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(monkeypatch, **changes)
    assert place() == Place() and place().is_main


@pytest.mark.parametrize(("own", "expected"), [(None, "ERROR"), ("INFO", "INFO")])
def test_torch_is_quiet_about_processes_that_leave_unless_its_user_wants_to_hear_it(
    own: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Set first, so that it is put back at the end whatever is done to it.
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", own or "")
    if own is None:
        monkeypatch.delenv("TORCH_CPP_LOG_LEVEL")
    quiet_connections()
    assert os.environ.get("TORCH_CPP_LOG_LEVEL") == own
    launched(monkeypatch)
    quiet_connections()
    assert os.environ["TORCH_CPP_LOG_LEVEL"] == expected


def test_more_processes_than_cards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch)
    cards(monkeypatch, 1)
    assert not takes_cards()
    with pytest.raises(UsageError, match="2 processes were started, and torch finds 1 cards"):
        pick_device("auto")
    assert pick_device("cpu") == "cpu"
    cards(monkeypatch, 2)
    assert takes_cards()
    assert pick_device("auto") == "cuda"


def test_accelerate_launch_cpu_leaves_the_card_alone_unless_the_settings_want_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cards(monkeypatch, 1)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert launched_for_the_processor() and not takes_cards()
    assert (pick_device("auto"), pick_device("cuda")) == ("cpu", "cuda")


def test_one_process_that_accelerate_started_for_several_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert not started_alone()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert started_alone()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not started_alone()
