"""The benchmarks run: their figures come from machines that CI does not have, their code must not rot meanwhile."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As python finds modules beside the script that it runs."""
    monkeypatch.syspath_prepend(str(FOLDER))


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def asked_of_cards(monkeypatch: pytest.MonkeyPatch, output: Path, *presets: str) -> dict[str, Any]:
    named = [part for preset in presets for part in ("--preset", preset)]
    sizes = ["--scale", "tiny", "--steps", "2", "--side", "64"]
    monkeypatch.setattr(sys, "argv", ["cards.py", *sizes, *named, "--output", str(output)])
    script("cards").main()
    return dict(json.loads(output.read_text()))


@pytest.fixture
def keeping(tmp_path: Path) -> str:
    """A preset whose plan uses everything that takes less memory, and keeps something."""
    file = tmp_path / "keeping.toml"
    memory = {"recompute": "all", "modulation": "ahead", "streamed_blocks": 2, "offload_activations": True}
    lines = [f"{name} = {json.dumps(value)}" for name, value in memory.items()]
    file.write_text("\n".join(["[memory]", *lines, "budget = 8.0", "keep.products = [1, 2]"]))
    return str(file)


def test_the_benchmark_of_cards_goes_through_every_phase_of_a_preset(
    keeping: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = asked_of_cards(monkeypatch, tmp_path / "results" / "card.json", keeping)
    (run,) = report["runs"]
    assert run["memory"]["modulation"] == "ahead"
    assert run["memory"]["streamed_blocks"] == 2
    assert list(run["phases"]) == list(run["foretold_gib"])
    assert list(run["phases"]) == ["encode captions", "encode pictures", "load", "step", "preview"]
    assert all(phase["process_gib"] > 0 for phase in run["phases"].values())
    assert min(run["step_seconds"], run["step_operations"], run["share_of_matrix_rate"]) > 0
    compared = run["recomputing_all"]
    assert compared["times_as_long"] == pytest.approx(compared["step_seconds"] / run["step_seconds"], rel=0.01)
    assert compared["foretold_times_as_long"] > 1
    assert report["command"].endswith("--scale tiny --steps 2 --side 64")
    assert "card.json" in capsys.readouterr().out


def test_what_fails_or_does_not_fit_is_part_of_the_benchmark_of_cards(tmp_path: Path) -> None:
    cards, cramped, failing = script("cards"), tmp_path / "cramped.toml", tmp_path / "failing.toml"
    cramped.write_text("[memory]\nbudget = 0.601\n")
    failing.write_text("[memory]\nstreamed_blocks = 99\n")
    failed, short = (cards.measure(str(file), "tiny", 2, 64) for file in (failing, cramped))
    assert "99 blocks" in failed["failed"]
    assert (short["fits"], "phases" in short, "failed" in short) == (False, False, False)
    assert short["lacking_gib"] > 0
    assert cards._summary(short).startswith("does not fit this card")


def test_the_benchmark_of_cards_takes_the_presets_that_ship(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cards = script("cards")
    monkeypatch.setattr(cards, "_in_a_process", lambda options, what: {"preset": what, "failed": "not tried"})
    monkeypatch.setattr(sys, "argv", ["cards.py", "--scale", "tiny", "--output", str(tmp_path / "card.json")])
    cards.main()
    runs = json.loads((tmp_path / "card.json").read_text())["runs"]
    shipped = {file.stem for file in (FOLDER.parent / "presets").glob("*.toml")}
    assert {run["preset"] for run in runs} == shipped - {"nano"}


def test_the_benchmark_of_pictures_makes_them_as_a_preset_and_by_hand(tmp_path: Path) -> None:
    preset = tmp_path / "small.toml"
    preset.write_text('[memory]\nbudget = 8.0\nbase_precision = "auto"\nmodulation = "ahead"\ntext_precision = "nf4"')
    run = script("pictures").measure(str(preset), "tiny", 64, 2, 2)
    assert (run["fluxtune"]["memory"]["base_precision"], run["by hand"]["held"]) == ("bf16", "bf16")
    assert min(run[way]["seconds_a_picture"] for way in ("fluxtune", "by hand")) > 0


def test_the_benchmark_of_recomputation_compares_what_plans_cost(tmp_path: Path) -> None:
    recompute = script("recompute")
    plans = recompute.plans_of(1, 1)
    figures = recompute.measure(recompute.middle_sized(tmp_path / "base", (1, 1), 64), plans, rounds=1)
    foretold = {name: plan["foretold_times_as_long"] for name, plan in figures["plans"].items()}
    assert set(foretold) == set(plans)
    assert min(foretold.values()) == foretold["everything"] == 1
    assert 1 < foretold["products"] < foretold["attention"] < foretold["nothing"] < 2
    assert all(plan["seconds"] > 0 for plan in figures["plans"].values())
    assert 0 <= figures["pairs_in_the_right_order"] <= figures["pairs"]


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


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel tells no anonymous memory")
def test_the_benchmark_of_fusing_writes_models_and_reads_a_lora_out_of_one(tmp_path: Path) -> None:
    fusing = script("fusing")
    figures = fusing.measure("tiny", tmp_path, fusing.run_once)
    sizes = [command["written_bytes"] for command in figures["commands"].values()]
    assert figures["base_bytes"] < sizes[2] < sizes[0]
    assert sizes[1] == pytest.approx(sizes[2] / 2, rel=0.02)
    assert sizes[3] > figures["changed_layers"] * 1000
    assert all(command["anonymous_peak_mib"] > 0 for command in figures["commands"].values())
    assert not list(tmp_path.iterdir())


def test_the_page_on_lora_files_has_the_figures_of_fusing_that_were_measured() -> None:
    figures = json.loads((FOLDER / "results" / "fusing.json").read_text(encoding="utf-8"))
    page = (FOLDER.parent / "docs" / "loras.md").read_text(encoding="utf-8")
    for name, each in figures["commands"].items():
        memory, seconds, written = (each[key] for key in ("anonymous_peak_mib", "seconds", "written_bytes"))
        row = (name, f"{memory:,.0f}", f"{seconds:,.0f}", f"{written / 1e9:.1f}")
        assert f"| {' | '.join(row)} |" in page
        assert memory < 4096


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel tells no anonymous memory")
def test_a_command_of_the_benchmark_of_fusing_that_fails_is_no_figure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exit code 2 of fluxtune export fuse"):
        script("fusing").run_once(["export", "fuse", str(tmp_path / "none.safetensors")])


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


@pytest.mark.slow
def test_the_benchmark_of_checkpoints_compares_them_with_bare_files_and_says_what_the_loop_loses() -> None:
    figures = script("checkpoints").measure(rounds=1, steps=5, every=2, scales=("tiny",))
    saving, loop = figures["saving"]["tiny"], figures["loop"]
    assert min(saving["seconds"].values()) > 0
    # AdamW's two moments and the weights in float32, and the LoRA in bf16.
    assert saving["bytes"]["checkpoint"] == pytest.approx(14 * saving["weights"], rel=0.2)
    assert saving["bytes"]["save_file of the LoRA"] == pytest.approx(2 * saving["weights"], rel=0.2)
    assert loop["checkpoints"] == 2
    assert 0 < loop["share_lost"] < loop["share_lost_at_most"]


@pytest.mark.slow
def test_the_benchmark_of_survival_kills_a_run_and_compares_what_it_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "results" / "survival.json"
    asked = ["--steps", "6", "--side", "64", "--set", "previews.every=0", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["survival.py", *asked])
    survival = script("survival")
    monkeypatch.setattr(survival, "pick_device", lambda _: "cpu")
    survival.main()
    figures = json.loads(output.read_text())
    assert figures["ended"] == {"unbroken": "result", "again": "result", "killed": "result"}
    assert 1 <= figures["resumed_at_step"] <= 4
    assert figures["distance_of_two_unbroken"] == figures["distance_of_killed_and_resumed"] == 0
    assert survival.distance({"a": torch.ones(4)}, {"a": torch.tensor([1.0, 1.0, 1.0, 2.0])}) == 0.5
