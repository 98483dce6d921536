from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fluxtune.hub.layouts import ModelKind

QUICK = [
    "--set=training.precision=fp32",
    "--set=memory.base_precision=fp32",
    "--set=memory.text_precision=fp32",
    "--set=training.device=cpu",
    "--set=dataset.resolution=128",
]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache, so that what several dry runs ask for is simulated once."""
    return tmp_path_factory.mktemp("simulated")


@pytest.fixture
def photos(own_cache: None, simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLUXTUNE_CACHE", str(simulated))
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        Image.effect_noise((160, 160), 60 + 20 * index).convert("RGB").save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a zorvex in place {index}")
    return folder


def dry(fluxtune: Callable, base: Path, *more: str) -> Any:
    return fluxtune("train", "photos", "--base", str(base), "--dry-run", *QUICK, *more)


def test_a_dry_run_says_what_a_run_takes_and_makes_nothing(
    fluxtune: Callable, photos: Path, tiny_flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluxtune.flux.load.fill", None)  # nobody loads weights
    outcome = dry(fluxtune, tiny_flux, "--vram", "0.8", "--steps", "12", "--json")
    assert outcome.code == 0
    records = outcome.records()
    assert [record["event"] for record in records].count("plan") == 1
    data = records[-1]["data"]
    assert (records[-1]["event"], data["pictures"], data["steps"], data["epochs"]) == ("result", 3, 12, 4.0)
    assert data["buckets"] == {"128x128": 3}
    assert data["plan"]["fits"] is True
    assert data["plan"]["capacity"] == int(0.8 * 2**30) - int(0.6 * 2**30)
    phases = {phase["phase"]: phase for phase in data["plan"]["phases"]}
    assert list(phases)[:2] == ["encode captions", "encode pictures"]
    assert phases["backward"]["alive"]["activations"] > 0
    assert data["seconds"] is None
    assert not (tmp_path / "runs").exists()


def test_on_paper_a_dry_run_is_a_table_of_phases(fluxtune: Callable, photos: Path, tiny_flux: Path) -> None:
    outcome = dry(fluxtune, tiny_flux, "--vram", "0.8")
    lines = outcome.out.splitlines()
    assert lines[0].split()[:4] == ["phase", "GiB", "reserved", "weights"]
    assert [line.split("  ")[0] for line in lines[1:8]] == [
        "encode captions",
        "encode pictures",
        "load",
        "forward",
        "backward",
        "update",
        "preview",
    ]
    assert any(line.startswith("fits: ") for line in lines)
    assert lines[-1].startswith("3 pictures, 1500 steps, ")


def test_what_does_not_fit_ends_with_exit_code_4_after_the_table(
    fluxtune: Callable, photos: Path, tiny_flux: Path
) -> None:
    outcome = dry(fluxtune, tiny_flux, "--vram", "0.602")
    assert outcome.code == 4
    assert "does not fit: " in outcome.out
    assert "error: memory: this run takes " in outcome.err


def test_what_does_not_fit_is_foretold_to_the_end_where_that_is_accepted(
    fluxtune: Callable, photos: Path, tiny_flux: Path
) -> None:
    outcome = dry(fluxtune, tiny_flux, "--vram", "0.602", "--accept", "memory", "--json")
    assert outcome.code == 0
    assert outcome.records()[-1]["data"]["plan"]["fits"] is False


def test_without_a_card_or_a_budget_a_dry_run_tells_what_the_fastest_step_takes(
    fluxtune: Callable, photos: Path, tiny_flux: Path
) -> None:
    outcome = dry(fluxtune, tiny_flux, "--json")
    plan = outcome.records()[-1]["data"]["plan"]
    assert (plan["capacity"], plan["fits"]) == (None, True)


def test_captions_that_are_yet_to_be_written_are_no_hindrance(
    fluxtune: Callable, photos: Path, tiny_flux: Path
) -> None:
    (photos / "1.txt").unlink()
    assert dry(fluxtune, tiny_flux).code == 3
    assert dry(fluxtune, tiny_flux, "--vram", "0.8", "--set", 'dataset.missing_captions="caption"').code == 0


def test_the_sizes_of_a_known_model_need_no_download(
    fluxtune: Callable, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluxtune.hub.locate.locate", None)
    decided = ["recompute=all", "modulation=ahead", "text_precision=nf4"]
    sets = [f"--set=memory.{each}" for each in decided] + ["--set=previews.every=0", "--resolution=256"]
    outcome = fluxtune("train", "photos", "--preset", "8gb", *sets, "--dry-run", "--json")
    data = outcome.records()[-1]["data"]
    assert (data["base"], data["plan"]["fits"]) == ("black-forest-labs/FLUX.1-dev", True)
    weights = max(phase["alive"]["weights"] for phase in data["plan"]["phases"] if phase["phase"] == "forward")
    assert 4.0 < weights / 2**30 < 4.5


def test_after_a_run_the_time_of_such_a_run_is_known(
    fluxtune: Callable, photos: Path, tiny_flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLUXTUNE_CACHE", str(tmp_path / "cache"))
    same = [*QUICK, "--vram", "0.8", "--set=previews.every=0"]
    assert fluxtune("train", "photos", "--base", str(tiny_flux), "--steps", "2", *same).code == 0
    outcome = dry(fluxtune, tiny_flux, "--vram", "0.8", "--set=previews.every=0", "--steps", "100", "--json")
    assert outcome.records()[-1]["data"]["seconds"] > 0


def test_a_dry_run_is_of_a_new_run(fluxtune: Callable, photos: Path) -> None:
    (photos.parent / "run").mkdir()
    (photos.parent / "run" / "config.toml").write_text("")
    outcome = fluxtune("train", "--resume", "run", "--dry-run")
    assert outcome.code == 2
    assert "--dry-run" in outcome.err


def test_a_folder_without_its_weights_is_refused_as_a_run_would_be(
    fluxtune: Callable, photos: Path, tiny_flux: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_flux, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    outcome = dry(fluxtune, tmp_path / "base")
    assert outcome.code == 5
    assert "safetensors" in outcome.err


def test_of_another_hub_model_no_weights_are_downloaded(
    fluxtune: Callable, photos: Path, tiny_flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked of the hub is tried with a running one in tests/hub."""
    asked: list[ModelKind] = []

    def locate(base: str, revision: object, offline: bool, on_event: object, check: object, kind: ModelKind) -> Path:
        asked.append(kind)
        return tiny_flux

    monkeypatch.setattr("fluxtune.flux.base.locate", locate)
    assert dry(fluxtune, Path("someone/flux-tuned"), "--set=previews.every=0").code == 0
    (kind,) = asked
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        assert f"{part}/*.safetensors" in kind.unwanted


def test_the_time_line_of_a_step_is_told_to_programs(fluxtune: Callable, photos: Path, tiny_flux: Path) -> None:
    data = dry(fluxtune, tiny_flux, "--vram", "0.8", "--json").records()[-1]["data"]
    phases = {phase["phase"]: sum(phase["alive"].values()) for phase in data["plan"]["phases"]}
    highest = max(sum(moment["alive"].values()) for moment in data["timeline"])
    assert highest == max(phases[name] for name in ("forward", "backward", "update"))
    assert list(dict.fromkeys(moment["phase"] for moment in data["timeline"]))[:2] == ["forward", "backward"]


def test_shapes_are_judged_as_before_a_run(fluxtune: Callable, photos: Path, tiny_flux: Path) -> None:
    Image.effect_noise((40, 40), 60).convert("RGB").save(photos / "small.png")
    (photos / "small.txt").write_text("a small zorvex")
    outcome = dry(fluxtune, tiny_flux, "--vram", "0.8")
    assert "small.png" in outcome.err
