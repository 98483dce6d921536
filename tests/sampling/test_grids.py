"""Grids of real pictures: the model stays, LoRAs and schedules change between them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from stock_flux import PROMPT, by_hand, lora_tensors

from fluxtune.events import Phase, Picture
from fluxtune.lora.use import LoraUse
from fluxtune.sampling.axes import read_axis
from fluxtune.sampling.generate import sample
from fluxtune.sampling.request import SampleRequest

Requests = Callable[..., SampleRequest]
Stock = Callable[[], Any]


def pixels(picture: Path | Image.Image) -> np.ndarray:
    return np.asarray(Image.open(picture) if isinstance(picture, Path) else picture)


@pytest.fixture
def other(tmp_path: Path, stock: Stock) -> Path:
    """Another LoRA, which changes other layers at another rank."""
    path = tmp_path / "other.safetensors"
    layers = ("transformer_blocks.1.attn.to_v", "single_transformer_blocks.0.proj_out")
    save_file(lora_tensors(stock(), 2, layers), path, metadata={"format": "pt"})
    return path


def test_every_scale_of_a_grid_is_the_stock_pipelines_and_loads_the_model_once(
    request_for: Requests, stock: Stock, lora: Path
) -> None:
    events: list[Any] = []
    axis = read_axis("lora-scale=1,0,-0.5", (None,))
    made = sample(request_for(loras=(LoraUse(lora, 0.5),), axes=(axis,)), events.append)
    assert [path.name for path in made.pictures] == [f"00-seed7-scale{scale}.png" for scale in ("1", "0", "-0.5")]
    pipeline = stock()
    plain = by_hand(pipeline)
    pipeline.load_lora_weights(lora, adapter_name="mug")
    for path, scale in zip(made.pictures, (0.5, 0.0, -0.25), strict=True):
        pipeline.set_adapters(["mug"], [scale])
        assert np.array_equal(pixels(path), pixels(by_hand(pipeline)))
    assert np.array_equal(pixels(made.pictures[1]), pixels(plain))
    assert [event.name for event in events if isinstance(event, Phase)] == ["encode", "load", "sample"]


def test_loras_that_take_turns_leave_nothing_behind(
    request_for: Requests, stock: Stock, lora: Path, other: Path
) -> None:
    both = (LoraUse(lora, 0.5), LoraUse(other, 0.7))
    axis = read_axis("lora-scale=1", (None, None))
    made = sample(request_for(loras=both, compare=True, axes=(axis,), seeds=(7, 8)))
    plain, adapted = stock(), stock()
    adapted.load_lora_weights(lora, adapter_name="mug")
    adapted.load_lora_weights(other, adapter_name="other")
    adapted.set_adapters(["mug", "other"], [0.5, 0.7])
    expected = [by_hand(pipeline, seed=seed) for seed in (7, 8) for pipeline in (plain, adapted)]
    for path, theirs in zip(made.pictures, expected, strict=True):
        assert np.array_equal(pixels(path), pixels(theirs))


def test_prompts_and_steps_of_a_grid_are_painted_as_they_are_alone(request_for: Requests, stock: Stock) -> None:
    axes = (read_axis("prompt=a cup|a green boat", ()), read_axis("steps=1,3", ()))
    made = sample(request_for(prompts=(), axes=axes))
    wanted = [(prompt, steps) for steps in (1, 3) for prompt in ("a cup", "a green boat")]
    names = ["00-seed7-steps1.png", "01-seed7-steps1.png", "00-seed7-steps3.png", "01-seed7-steps3.png"]
    assert [path.name for path in made.pictures] == names
    pipeline = stock()
    for path, (prompt, steps) in zip(made.pictures, wanted, strict=True):
        assert np.array_equal(pixels(path), pixels(by_hand(pipeline, prompt, num_inference_steps=steps)))


def test_a_picture_is_told_as_soon_as_it_is_written_and_a_stop_keeps_it(request_for: Requests) -> None:
    seen: list[Path] = []

    def stop_at_the_second(event: Any) -> None:
        if isinstance(event, Picture):
            assert Path(event.path).is_file()
            seen.append(Path(event.path))
            if len(seen) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(request_for(seeds=(7, 8, 9)), stop_at_the_second)
    folder = seen[0].parent
    assert sorted(folder.iterdir()) == sorted(seen)
    assert [path.name for path in seen] == ["00-seed7.png", "00-seed8.png"]


def test_several_sheets_have_names_of_their_own_and_say_what_they_hold(request_for: Requests) -> None:
    events: list[Any] = []
    axes = tuple(read_axis(text, ()) for text in ("guidance=1,2", "steps=1,2", "seed=3,4"))
    made = sample(request_for(axes=axes), events.append)
    assert [path.name for path in made.grids] == ["00-grid.png", "00-grid-2.png"]
    told = [event for event in events if isinstance(event, Picture)]
    assert [event.seed for event in told] == [3, 3, 3, 3, 4, 4, 4, 4, None, None]
    assert [event.path for event in told[-2:]] == [str(path) for path in made.grids]
    assert {event.prompt for event in told} == {PROMPT, None}


def test_a_batch_paints_what_single_pictures_show(request_for: Requests, lora: Path) -> None:
    from fluxtune.config.sampling import SamplingConfig

    single = sample(request_for(prompts=(PROMPT, "a boat"), seeds=(7, 8), loras=(LoraUse(lora),)))
    together = sample(
        request_for(
            prompts=(PROMPT, "a boat"), seeds=(7, 8), loras=(LoraUse(lora),), sampling=SamplingConfig(batch_size=4)
        )
    )
    for one, other in zip(single.pictures, together.pictures, strict=True):
        assert np.abs(pixels(one).astype(int) - pixels(other).astype(int)).max() <= 1
