from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stock_flux import PROMPT, by_hand

from fluxtune.config.model import ModelConfig
from fluxtune.errors import OutOfMemoryError, StorageError, UsageError
from fluxtune.events import Progress
from fluxtune.lora.use import LoraUse
from fluxtune.sampling import texts as texts_module
from fluxtune.sampling.generate import sample
from fluxtune.sampling.request import SampleRequest

Requests = Callable[..., SampleRequest]
Stock = Callable[[], Any]


def pixels(picture: Path | Image.Image) -> np.ndarray:
    return np.asarray(Image.open(picture) if isinstance(picture, Path) else picture)


def test_a_picture_equals_the_stock_pipeline_called_by_hand(request_for: Requests, stock: Stock) -> None:
    made = sample(request_for())
    assert np.array_equal(pixels(made.pictures[0]), pixels(by_hand(stock())))


def test_a_picture_with_a_lora_equals_the_stock_pipeline_that_loaded_it(
    request_for: Requests, stock: Stock, lora: Path
) -> None:
    made = sample(request_for(loras=(LoraUse(lora, 0.5),)))
    pipeline = stock()
    pipeline.load_lora_weights(lora, adapter_name="mug")
    pipeline.set_adapters(["mug"], [0.5])
    assert np.array_equal(pixels(made.pictures[0]), pixels(by_hand(pipeline)))
    assert not np.array_equal(pixels(made.pictures[0]), pixels(by_hand(stock())))


def test_every_prompt_is_painted_with_every_seed(request_for: Requests, stock: Stock) -> None:
    made = sample(request_for(prompts=(PROMPT, "a green star"), seeds=(7, 8)))
    names = ["00-seed7.png", "00-seed8.png", "01-seed7.png", "01-seed8.png"]
    assert [path.name for path in made.pictures] == names
    expected = by_hand(stock(), "a green star", seed=8)
    assert np.array_equal(pixels(made.pictures[3]), pixels(expected))


def test_a_lora_at_scale_zero_changes_nothing(request_for: Requests, lora: Path) -> None:
    plain = sample(request_for())
    nothing = sample(request_for(loras=(LoraUse(lora, 0.0),)))
    assert np.array_equal(pixels(plain.pictures[0]), pixels(nothing.pictures[0]))


def test_existing_pictures_are_never_overwritten(request_for: Requests) -> None:
    first = sample(request_for())
    before = first.pictures[0].read_bytes()
    again = sample(request_for())
    assert again.pictures[0].name == "01-seed7.png"
    assert first.pictures[0].read_bytes() == before


def test_comparing_paints_both_and_a_grid_that_holds_their_pixels(request_for: Requests, lora: Path) -> None:
    made = sample(request_for(loras=(LoraUse(lora),), seeds=(7, 8), compare=True))
    names = ["00-seed7-without.png", "00-seed7.png", "00-seed8-without.png", "00-seed8.png"]
    assert [path.name for path in made.pictures] == names
    assert made.grid is not None
    grid = pixels(made.grid)
    for path in made.pictures:
        assert occurrences(pixels(path), grid) == 1


def test_the_pictures_without_the_lora_are_the_base_models(request_for: Requests, lora: Path) -> None:
    made = sample(request_for(loras=(LoraUse(lora),), compare=True))
    plain = sample(request_for())
    assert np.array_equal(pixels(made.pictures[0]), pixels(plain.pictures[0]))


def test_the_facts_in_a_picture_make_it_again(request_for: Requests, lora: Path, tmp_path: Path) -> None:
    made = sample(request_for(loras=(LoraUse(lora, 0.7),), steps=3, guidance=2.0))
    facts = json.loads(Image.open(made.pictures[0]).text["fluxtune"])  # type: ignore[attr-defined]
    assert facts["loras"][0]["file"] == lora.name
    again = sample(
        request_for(
            prompts=(facts["prompt"],),
            seeds=(facts["seed"],),
            steps=facts["steps"],
            guidance=facts["guidance"],
            width=facts["width"],
            height=facts["height"],
            loras=tuple(LoraUse(lora.with_name(used["file"]), used["scale"]) for used in facts["loras"]),
            output=tmp_path / "again",
        )
    )
    assert np.array_equal(pixels(made.pictures[0]), pixels(again.pictures[0]))


def test_progress_counts_the_denoising_steps_of_all_pictures(request_for: Requests) -> None:
    events: list[Any] = []
    sample(request_for(seeds=(7, 8)), events.append)
    progress = [event for event in events if isinstance(event, Progress) and event.task == "denoise"]
    assert [(event.done, event.total) for event in progress] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_side_that_the_model_cannot_paint_is_refused_with_the_nearest(request_for: Requests) -> None:
    with pytest.raises(UsageError, match="width is 100: wanted a multiple of 16") as error:
        sample(request_for(width=100))
    assert error.value.hint == "the nearest are 96 and 112"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_a_model_that_does_not_fit_in_memory_says_what_to_make_smaller(
    request_for: Requests, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(texts_module, "load_text_pipeline", fail)
    with pytest.raises(OutOfMemoryError, match="does not fit in memory") as failure:
        sample(request_for())
    assert failure.value.exit_code == 4
    assert "smaller preset" in str(failure.value.hint)


def test_nothing_to_paint_is_a_usage_error(request_for: Requests) -> None:
    with pytest.raises(UsageError, match="no prompt"):
        request_for(prompts=())


def test_comparing_without_a_lora_is_a_usage_error(request_for: Requests) -> None:
    with pytest.raises(UsageError, match="there is no LoRA"):
        request_for(compare=True)


def test_a_lora_that_is_not_there_is_told_before_the_base_model_is_looked_for(
    request_for: Requests, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no such LoRA file"):
        sample(request_for(model=ModelConfig(base="no/base"), loras=(LoraUse(tmp_path / "gone.safetensors"),)))


def test_an_output_that_is_a_file_is_told_before_the_base_model_is_looked_for(
    request_for: Requests, tmp_path: Path
) -> None:
    (tmp_path / "pictures").write_text("no folder")
    with pytest.raises(StorageError, match="this is a file, not a folder"):
        sample(request_for(model=ModelConfig(base="no/base"), output=tmp_path / "pictures" / "new"))


def occurrences(small: np.ndarray, large: np.ndarray) -> int:
    """How often ``small`` lies in ``large``, to the pixel."""
    height, width = small.shape[:2]
    corners = np.argwhere((large[: 1 - height, : 1 - width] == small[0, 0]).all(axis=-1))
    return sum(np.array_equal(large[top : top + height, left : left + width], small) for top, left in corners)
