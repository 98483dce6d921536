"""Sampling with compiled blocks: the same pictures but for rounding, with LoRAs that come and go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stock_flux import by_hand

from fluxtune.config.sampling import SamplingConfig
from fluxtune.errors import UsageError
from fluxtune.lora.use import LoraUse
from fluxtune.sampling.generate import sample
from fluxtune.sampling.picture_files import facts_in
from fluxtune.sampling.request import SampleRequest

Requests = Callable[..., SampleRequest]
COMPILED = SamplingConfig(compile=True)


@pytest.mark.slow
def test_compiled_blocks_paint_the_stock_pipelines_pictures_but_for_rounding(
    request_for: Requests, stock: Callable[[], Any], lora: Path
) -> None:
    made = sample(request_for(loras=(LoraUse(lora),), compare=True, sampling=COMPILED))
    pipeline = stock()
    plain = by_hand(pipeline)
    pipeline.load_lora_weights(lora, adapter_name="mug")
    for path, expected in zip(made.pictures, (plain, by_hand(pipeline)), strict=True):
        difference = np.abs(np.asarray(Image.open(path), dtype=int) - np.asarray(expected, dtype=int))
        assert difference.max() <= 2
        assert facts_in(path)["compile"] is True


def test_a_compiler_that_fails_is_told_as_the_setting(request_for: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no compiler was found")

    compile_with = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compile_with(module, backend=fail))
    with pytest.raises(UsageError, match="the transformer cannot be compiled here") as error:
        sample(request_for(sampling=COMPILED))
    assert error.value.where == "sampling.compile"
