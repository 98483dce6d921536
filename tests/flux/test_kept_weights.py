from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fluxtune.config.memory import MemoryConfig
from fluxtune.config.model import ModelConfig
from fluxtune.dataset.cache import cache_folder
from fluxtune.errors import StorageError
from fluxtune.events import Event, Phase, Warning
from fluxtune.flux import kept_weights, weights
from fluxtune.flux.base import Base, open_base
from fluxtune.flux.load import load_text_pipeline, load_transformer

LAYERS = 40
"""Linear layers in the blocks of the tiny FLUX: 14 of each double block and 6 of each single one."""


@pytest.fixture
def quantisations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with each layer that is quantised."""
    made, quantize = list[int](), weights.quantized_linear

    def counting(*arguments: Any) -> nn.Module:
        made.append(len(made))
        return quantize(*arguments)

    monkeypatch.setattr(weights, "quantized_linear", counting)
    return made


def load(base: Base, precision: str = "nf4", kept: bool = True) -> tuple[nn.Module, list[Event]]:
    memory = MemoryConfig(base_precision=precision, text_precision=precision, cache_quantized=kept)  # type: ignore[arg-type]
    events: list[Event] = []
    return load_transformer(base, memory, torch.bfloat16, "cpu", events.append), events


def phases(events: list[Event]) -> list[str]:
    return [event.detail for event in events if isinstance(event, Phase)]


def velocity(base: Base, model: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    text = {"prompt_embeds": torch.randn(1, 6, 32, generator=generator)}
    text["pooled_prompt_embeds"] = torch.randn(1, 32, generator=generator)
    noisy = torch.randn(1, 64, 4, 4, generator=generator).bfloat16()
    with torch.no_grad():
        return base.family.forward(model, noisy, torch.tensor([0.4]), text, 1.0)


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_a_second_start_quantises_nothing_and_computes_the_same_to_the_bit(
    base: Base, quantisations: list[int], precision: str
) -> None:
    first, told = load(base, precision)
    assert len(quantisations) == LAYERS
    assert phases(told) == [f"{LAYERS} new (0.0 GiB), 0 from the cache"]
    again, told = load(base, precision)
    assert len(quantisations) == LAYERS
    assert phases(told) == [f"0 new, {LAYERS} from the cache"]
    assert torch.equal(velocity(base, first), velocity(base, again))
    assert torch.equal(velocity(base, first), velocity(base, load(base, precision, kept=False)[0]))


def test_nothing_is_kept_unless_it_is_asked_for(base: Base) -> None:
    assert phases(load(base, kept=False)[1]) == []
    assert not list(cache_folder().glob("quantized-*"))


def test_a_text_encoder_is_kept_too(base: Base, quantisations: list[int]) -> None:
    memory = MemoryConfig(text_precision="nf4", cache_quantized=True)
    embeddings = []
    for _ in range(2):
        pipeline = load_text_pipeline(base, memory, torch.bfloat16, "cpu")
        with torch.no_grad():
            embeddings.append(pipeline.encode_prompt("a red star", max_sequence_length=8)[0])
        assert len(quantisations) == 6
    assert torch.equal(*embeddings)


def test_other_weights_precisions_and_types_are_other_entries(
    base: Base, own_copy: Path, quantisations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(base, "nf4")
    load(base, "int8")
    config = own_copy / "transformer" / "config.json"
    config.write_text(config.read_text() + "\n")
    load(open_base(ModelConfig(base=str(own_copy))), "nf4")
    monkeypatch.setattr(kept_weights, "made_by", lambda precision: "another version")
    load(base, "nf4")
    assert len(quantisations) == 4 * LAYERS


def test_damage_is_told_and_the_layers_are_made_anew(base: Base, quantisations: list[int]) -> None:
    expected = velocity(base, load(base)[0])
    (shard,) = cache_folder().glob("quantized-*/*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    again, told = load(base)
    (warning,) = [event for event in told if isinstance(event, Warning)]
    assert "damaged cache file, made again" in warning.message
    assert len(quantisations) == 2 * LAYERS
    assert torch.equal(velocity(base, again), expected)
    load(base)
    assert len(quantisations) == 2 * LAYERS


def test_what_was_quantised_before_an_interruption_is_kept(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    made, quantize = Counter[str](), weights.quantized_linear

    def interrupted(*arguments: Any) -> nn.Module:
        made["layers"] += 1
        if made["layers"] == 10:
            raise KeyboardInterrupt
        return quantize(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(weights, "quantized_linear", interrupted)
        load(base)
    assert phases(load(base)[1]) == [f"{LAYERS - 9} new (0.0 GiB), 9 from the cache"]


def test_a_disk_without_room_is_told_before_anything_is_quantised(
    base: Base, quantisations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_weights, "packed_bytes", lambda layer, precision: 2**60)
    with pytest.raises(StorageError, match="quantised weights need"):
        load(base)
    assert quantisations == []
