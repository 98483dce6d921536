"""The benchmarks run: their figures come from machines that CI does not have, their code must not rot meanwhile."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("preset", ["24gb", "80gb"])
def test_the_full_size_benchmark_measures_a_preset_on_a_small_transformer(preset: str) -> None:
    figures = script("full_size").measure(preset, "tiny", steps=1, side=64)
    assert figures["preset"] == preset
    assert figures["step_seconds"] > 0
    assert min(figures["load_peak_gib"], figures["peak_gib"], figures["share_of_matrix_rate"]) > 0
    assert figures["step_operations"] > 1e6


def test_the_benchmark_of_validation_measures_it_against_decoding() -> None:
    figures = script("validate").measure(2, (320, 240), rounds=1, threads=2)
    assert (figures["pictures"], figures["size"]) == (2, [320, 240])
    assert min(figures["decoded_a_second"], figures["validated_a_second"], figures["times_as_long"]) > 0


def test_the_benchmark_of_caching_measures_it_against_the_encoders() -> None:
    figures = script("caching").measure(pictures=2, captions=2, entries=20, rounds=1, size=(320, 240))
    for name in ("pictures, VAE of nano", "pictures, VAE of middle size", "captions"):
        assert min(figures[name].values()) > 0
    assert (figures["store"]["entries"], figures["store"]["shards"]) == (20, 1)


def test_the_benchmark_of_captioning_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "results" / "captioning.json"
    asked = ["--pictures", "2", "--batch-size", "2", "--rounds", "1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["captioning.py", *asked])
    script("captioning").main()
    figures = json.loads(output.read_text())
    assert (figures["pictures"], figures["batch_size"]) == (2, 2)
    assert figures["command"].endswith("--pictures 2 --batch-size 2 --rounds 1")
    assert min(figures[name] for name in ("generated_a_second", "captioned_a_second", "times_as_long")) > 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel tells no anonymous memory")
def test_the_benchmark_of_loading_measures_shards_one_file_and_the_cache(tmp_path: Path) -> None:
    loading = script("loading")
    figures = loading.measure("tiny", tmp_path, lambda settings, _: loading.load_once(settings))
    ways = ("shards, into the cache", "from the cache", "one file")
    loads = [figures["loads"][f"{precision}, {way}"] for precision in ("int8", "nf4") for way in ways]
    assert all(load["seconds"] >= 0 and load["weights_mib"] > 0 for load in loads)
    assert len({load["weights_mib"] for load in loads[:3]}) == 1
    assert figures["bf16_mib"] > loads[0]["weights_mib"] > loads[3]["weights_mib"]
    assert not list(tmp_path.iterdir())


def test_the_page_on_precisions_has_the_figures_that_were_measured() -> None:
    precisions = script("precisions")
    figures = json.loads((FOLDER / "results" / "precisions.json").read_text(encoding="utf-8"))
    tables = precisions.tables_of(figures)
    page = (FOLDER.parent / "docs" / "precisions.md").read_text(encoding="utf-8")
    assert len(tables) == page.count("| ---: |\n") == 3
    assert precisions.with_tables(page, tables) == page


def test_the_benchmark_of_precisions_measures_the_base_in_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, page = tmp_path / "precisions.json", tmp_path / "page.md"
    page.write_text("Alone:\n\n| a |\n\nTrained:\n\n| a |\n\nWeights:\n\n| a |\n| b |\n\nEnd.\n")
    asked = ["--seeds", "--pictures", "2", "--output", str(output), "--page", str(page)]
    monkeypatch.setattr(sys, "argv", ["precisions.py", *asked])
    script("precisions").main()
    figures = json.loads(output.read_text())
    losses = {name: figures["bases"][name]["scenes"] for name in ("bf16", "int8", "int8-weights", "fp8", "nf4")}
    assert len(set(losses.values())) == 5
    assert page.read_text().count("`nf4`") == 2
    assert page.read_text().endswith("\n\nEnd.\n")


@pytest.mark.slow
def test_the_benchmark_of_precisions_goes_on_from_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    precisions, output = script("precisions"), tmp_path / "precisions.json"
    monkeypatch.setattr(precisions, "HELD", {"bf16": "fp32", "nf4": "nf4"})
    sizes = ["--steps", "1", "--prompts", "2", "--pictures", "2"]
    runs = []
    for seeds in (["1"], ["1", "2"]):
        monkeypatch.setattr(sys, "argv", ["precisions.py", *sizes, "--output", str(output), "--seeds", *seeds])
        precisions.main()
        runs.append(json.loads(output.read_text())["runs"])
    assert [(run["precision"], run["seed"]) for run in runs[1]] == [("bf16", 1), ("nf4", 1), ("bf16", 2), ("nf4", 2)]
    assert runs[1][:2] == runs[0]
    assert all(0.1 < run["loss"]["scenes"] < 2 for run in runs[1])
    assert capsys.readouterr().out.count("training_seconds") == 4
