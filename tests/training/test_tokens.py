"""What the text encoders would not see is said before training."""

from __future__ import annotations

from pathlib import Path

import pytest

from fluxtune.config.model import ModelConfig
from fluxtune.events import Event, Warning
from fluxtune.flux.base import Base, open_base
from fluxtune.training.tokens import warn_of_tokens


@pytest.fixture
def base(tiny_flux: Path) -> Base:
    return open_base(ModelConfig(base=str(tiny_flux)))


def warnings_of(base: Base, captions: list[str], trigger: str | None = None) -> list[Warning]:
    events: list[Event] = []
    warn_of_tokens(base, captions, trigger, events.append)
    return [event for event in events if isinstance(event, Warning)]


def test_captions_that_are_cut_off_are_counted_and_the_longest_is_named_first(base: Base) -> None:
    long, longer = "a red cup " * 15, "a blue cup " * 20
    (warning,) = warnings_of(base, ["a red cup", long, longer, longer])
    assert warning.message.startswith(f"2 captions are longer than the {base.text_tokens} tokens")
    assert warning.message.index("blue") < warning.message.index("red")


def test_a_trigger_that_the_encoder_cannot_spell_is_told(base: Base) -> None:
    (warning,) = warnings_of(base, ["a 日本 on a table"], trigger="日本")
    assert "'日本' has letters that the base model's text encoder does not know" in warning.message


def test_usual_captions_and_triggers_pass_in_silence(base: Base) -> None:
    assert warnings_of(base, ["a zorvex on a plain red background"], trigger="zorvex") == []
