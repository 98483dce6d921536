from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import get_args

import pytest

from fluxtune import events
from fluxtune.events import Event, as_record

SAMPLES: dict[str, Event] = {
    "run_started": events.RunStarted("runs/mug", "nano", 10, {"training": {"steps": 10}}),
    "phase": events.Phase("load", "nano"),
    "progress": events.Progress("encode captions", 1, 4, "captions", 2.0, 1.5),
    "step": events.Step(1, 10, 0.5, 1e-4, 0.1, 2.0, 4.5, 1.2),
    "preview": events.Preview(0, "a red star", 42, "runs/mug/previews/00.png"),
    "picture": events.Picture("samples/00-seed7.png", "a cup", 7),
    "checkpoint": events.Checkpoint(5, "runs/mug/checkpoints/step-000005"),
    "warning": events.Warning("small pictures", "photos"),
    "finding": events.Finding("error", "decode", "cut off", "photos/1.png"),
    "caption": events.Caption("a.png", "a.txt", "a dog", True),
    "plan": events.Plan("int8 base", {"recompute": "all"}, True, 2**30, 2**29, [{"phase": "load"}], {}, 0.5),
    "resumed": events.Resumed(5, "runs/mug/checkpoints/step-000005"),
    "rolled_back": events.RolledBack(5, "runs/mug/checkpoints/step-000005", 0.5),
    "result": events.Result("train", {"file": "mug.safetensors"}),
    "error": events.Error(7, "diverged", problems=[{"message": "x"}]),
}


def test_the_vocabulary_is_the_contracts() -> None:
    assert {kind.event for kind in get_args(Event)} == set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_record_is_json_with_schema_name_and_time(name: str) -> None:
    record = json.loads(json.dumps(as_record(SAMPLES[name])))
    assert list(record)[:3] == ["schema", "event", "time"]
    assert (record["schema"], record["event"]) == (1, name)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(record["time"])).total_seconds()) < 60
    for field, value in vars(SAMPLES[name]).items():
        assert record[field] == value


def test_numbers_keep_their_full_precision() -> None:
    loss = 0.1 + 0.2
    step = events.Step(1, 10, loss, 1e-4, 0.1, 2.0, 4.5, 1.2)
    assert json.loads(json.dumps(as_record(step)))["loss"] == loss
