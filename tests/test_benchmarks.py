"""The benchmarks run: their figures come from cards that CI does not have, their code must not rot meanwhile."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "full_size.py"


@pytest.mark.parametrize("preset", ["24gb", "80gb"])
def test_the_full_size_benchmark_measures_a_preset_on_a_small_transformer(preset: str) -> None:
    spec = importlib.util.spec_from_file_location("full_size", SCRIPT)
    assert spec is not None and spec.loader is not None
    full_size = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(full_size)
    figures = full_size.measure(preset, "tiny", steps=1, side=64)
    assert figures["preset"] == preset
    assert figures["step_seconds"] > 0
    assert min(figures["load_peak_gib"], figures["peak_gib"], figures["share_of_matrix_rate"]) > 0
    assert figures["step_operations"] > 1e6
