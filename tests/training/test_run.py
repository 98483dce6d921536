from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from tiny_runs import STEPS, Trained, config_for, plain_config, small_pictures, train_in
from transformers import CLIPTextModel, T5EncoderModel

from fluxtune.config.layers import resolve
from fluxtune.config.presets import built_in_folder
from fluxtune.config.settings import values_of
from fluxtune.dataset.cache import Store
from fluxtune.errors import DivergedError, ExitCode, StorageError
from fluxtune.events import Checkpoint, Preview, Step
from fluxtune.lora.files import read_metadata
from fluxtune.manifests import verify_manifest
from fluxtune.runs import Run
from fluxtune.sentences import log_lines
from fluxtune.training import load as load_module
from fluxtune.training.run import train

CHECKPOINT = {
    "mug.safetensors",
    "state/adapter.safetensors",
    "state/average.safetensors",
    "state/optimizer.safetensors",
    "state/run.json",
    "state.json",
    "manifest.json",
}


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def same_tensors(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return set(first) == set(second) and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_the_same_seed_gives_the_same_file(trained: Trained, trained_again: Trained) -> None:
    assert same_tensors(trained.tensors, trained_again.tensors)
    first, second = read_metadata(trained.file), read_metadata(trained_again.file)
    timed = {"modelspec.date", "ss_training_started_at", "ss_training_finished_at"}
    assert {key for key in first if first[key] != second[key]} <= timed
    assert trained.losses == trained_again.losses


def test_the_log_holds_the_sentences_of_all_that_was_told(trained: Trained) -> None:
    log = (trained.folder / "log.txt").read_text("utf-8").splitlines()
    told = [line for event in trained.events for line in log_lines(event)]
    assert [line.partition(" ")[2] for line in log] == told
    assert told[-1] == f"result: {trained.file}"
    assert sum(line.startswith("step ") for line in told) == STEPS


def test_another_seed_gives_another_file(trained: Trained, tiny_flux: Path, few_pictures: Path, tmp_path: Path) -> None:
    config = config_for(tiny_flux, few_pictures, training__seed=1, training__steps=1, previews__every=0)
    other = train_in(tmp_path / "mug", config, cache=trained.cache)
    assert other.losses[0] != trained.losses[0]


def test_the_run_folder_holds_what_the_contract_says(trained: Trained) -> None:
    loose = {path.name for path in trained.folder.iterdir() if path.is_file()}
    records = {"config.toml", "origins.json", "run.json", "captions.jsonl", "events.jsonl", "log.txt"}
    assert loose == {*records, "mug.safetensors"}
    assert files_below(trained.folder / "previews") == {f"step-{step:06d}/00-seed7.png" for step in (0, 3, STEPS)}
    state = Run.open(trained.folder).state
    assert (state.status, state.step, state.result) == ("finished", STEPS, "mug.safetensors")
    assert state.checkpoint == "checkpoints/step-000006"
    assert state.facts["pictures"] == 3


def test_the_stored_configuration_reads_back_as_the_one_that_ran(trained: Trained) -> None:
    stored = resolve(
        preset=None, config_file=trained.folder / "config.toml", flags={}, sets=[], working_folder=trained.folder
    )
    assert stored.config == trained.config


def test_a_checkpoint_is_whole_and_only_the_newest_are_kept(trained: Trained) -> None:
    folders = Run.open(trained.folder).checkpoints()
    assert [folder.name for folder in folders] == ["step-000004", "step-000006"]
    assert {path.name for path in (trained.folder / "checkpoints").iterdir()} == {"step-000004", "step-000006"}
    for folder in folders:
        assert files_below(folder) == CHECKPOINT
        verify_manifest(folder)
    assert [event.step for event in trained.seen(Checkpoint)] == [2, 4, 6]


def test_the_last_checkpoints_lora_is_the_result(trained: Trained) -> None:
    last = load_file(trained.folder / "checkpoints" / "step-000006" / "mug.safetensors")
    assert same_tensors(last, trained.tensors)


def test_what_is_saved_is_the_moving_average(trained: Trained) -> None:
    state = trained.folder / "checkpoints" / "step-000006" / "state"
    average, adapter = load_file(state / "average.safetensors"), load_file(state / "adapter.safetensors")
    saved = {key.removeprefix("transformer.").removesuffix(".weight"): value for key, value in trained.tensors.items()}
    assert same_tensors(saved, average)
    assert not same_tensors(saved, adapter)


def test_the_event_log_is_the_stream_that_the_caller_saw(trained: Trained) -> None:
    record = trained.record()
    assert [line["event"] for line in record] == [event.event for event in trained.events]
    assert all(line["schema"] == 1 and line["time"] for line in record)
    assert [(line["step"], line["loss"]) for line in record if line["event"] == "step"] == [
        (step.step, step.loss) for step in trained.seen(Step)
    ]
    assert record[-1]["event"] == "result"
    assert record[-1]["data"]["file"] == str(trained.file)


def test_every_step_is_reported_once_with_its_figures(trained: Trained) -> None:
    steps = trained.seen(Step)
    assert [step.step for step in steps] == list(range(1, STEPS + 1))
    assert all(step.total == STEPS and step.learning_rate == 1e-3 for step in steps)
    assert all(step.loss > 0 and step.grad_norm > 0 and step.rate > 0 and step.memory > 0 for step in steps)
    # Three pictures of two shapes in batches of two are two batches an epoch.
    assert [step.epoch for step in steps] == [0, 0, 1, 1, 2, 2]


def test_the_header_tells_how_the_lora_was_made(trained: Trained, tiny_flux: Path) -> None:
    metadata = read_metadata(trained.file)
    told = {
        "modelspec.title": "mug",
        "modelspec.trigger_phrase": "zorvex",
        "modelspec.resolution": "128x128",
        "ss_sd_model_name": tiny_flux.name,
        "ss_steps": "6",
        "ss_epoch": "3",
        "ss_network_dim": "4",
        "ss_num_train_images": "3",
        "ss_seed": "42",
    }
    assert told.items() <= metadata.items()
    assert not [value for value in metadata.values() if str(tiny_flux.parent) in value or "in place" in value]


def test_an_existing_run_folder_is_never_written_over(trained: Trained, tiny_flux: Path, few_pictures: Path) -> None:
    before = files_below(trained.folder)
    with pytest.raises(StorageError, match="exists already") as error:
        train(config_for(tiny_flux, few_pictures), output=trained.folder)
    assert error.value.exit_code == ExitCode.STORAGE
    assert "--resume" in str(error.value.hint)
    assert files_below(trained.folder) == before


def test_the_loss_falls_when_one_picture_is_learned_by_heart(tiny_flux: Path, tmp_path: Path) -> None:
    pictures = small_pictures(tmp_path / "one", sizes=[(64, 64)])
    config = plain_config(
        tiny_flux,
        pictures,
        dataset__resolution=[64],
        lora__targets="all-linear",
        lora__rank=16,
        training__steps=60,
        training__learning_rate=1e-2,
        training__schedule="cosine",
    )
    losses = train_in(tmp_path / "mug", config, cache=tmp_path / "cache").losses
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_two_small_batches_accumulated_equal_one_large_batch(tiny_flux: Path, tmp_path: Path) -> None:
    pictures = small_pictures(tmp_path / "one", sizes=[(128, 128)])
    shared = {"training__steps": 3, "dataset__folders": [{"path": str(pictures), "repeats": 2}]}
    large, small = (
        train_in(
            tmp_path / name,
            plain_config(
                tiny_flux, pictures, training__batch_size=batch, training__accumulation=accumulation, **shared
            ),
            cache=tmp_path / "cache",
        )
        for name, batch, accumulation in (("large", 2, 1), ("small", 1, 2))
    )
    assert small.losses == pytest.approx(large.losses, rel=1e-5)
    for name, tensor in large.tensors.items():
        assert torch.allclose(small.tensors[name], tensor, atol=2e-4), name


@pytest.mark.parametrize("method", ["output", "prior"])
def test_preservation_of_weight_zero_trains_as_none(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path, method: str
) -> None:
    shared = {"training__steps": 2}
    guard = {"method": method, "weight": 0.0, "pictures": 1}
    plain = train_in(tmp_path / "a", plain_config(tiny_flux, few_pictures, **shared), cache=tmp_path / "cache")
    guarded = train_in(
        tmp_path / "b",
        plain_config(tiny_flux, few_pictures, training__preservation=guard, **shared),
        cache=tmp_path / "cache",
    )
    assert same_tensors(guarded.tensors, plain.tensors)


@pytest.mark.parametrize("method", ["output", "prior"])
def test_preservation_acts(tiny_flux: Path, few_pictures: Path, tmp_path: Path, method: str) -> None:
    tensors = [
        train_in(
            tmp_path / f"weight-{weight}",
            plain_config(
                tiny_flux,
                few_pictures,
                training__steps=3,
                training__preservation={"method": method, "weight": weight, "pictures": 1},
            ),
            cache=tmp_path / "cache",
        ).tensors
        for weight in (0.0, 50.0)
    ]
    assert not same_tensors(*tensors)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8-weights", "fp8", "nf4"])
@pytest.mark.parametrize("recompute", ["none", "all"])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit"])
def test_every_way_to_save_memory_trains(
    trained: Trained,
    tiny_flux: Path,
    few_pictures: Path,
    tmp_path: Path,
    precision: str,
    recompute: str,
    optimizer: str,
) -> None:
    config = plain_config(
        tiny_flux,
        few_pictures,
        training__steps=2,
        training__optimizer=optimizer,
        memory__base_precision=precision,
        memory__recompute=recompute,
    )
    tensors = train_in(tmp_path / "mug", config, cache=trained.cache).tensors
    up = [tensor for name, tensor in tensors.items() if ".lora_B." in name]
    # The context's output leaves the last double block unread, so its layers have no gradient.
    assert sum(bool(tensor.abs().max() > 0) for tensor in up) >= len(up) - 2


def test_a_bfloat16_run_on_quantised_encoders_previews_and_saves(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path
) -> None:
    config = config_for(
        tiny_flux,
        few_pictures,
        training__steps=2,
        training__precision="bf16",
        memory={"base_precision": "nf4", "text_precision": "nf4", "recompute": "all"},
        previews__every=1,
        checkpoints__dtype="bf16",
    )
    run = train_in(tmp_path / "mug", config, cache=tmp_path / "cache")
    assert {tensor.dtype for tensor in run.tensors.values()} == {torch.bfloat16}
    assert [preview.step for preview in run.seen(Preview)] == [0, 1, 2]


PRESETS = sorted(file.stem for file in built_in_folder().glob("*.toml"))
ALIKE = {"8gb": "6gb", "16gb": "12gb", "24gb": "12gb"}
"""Presets that differ from another in nothing but size of pictures and memory, of which a tiny model needs little."""


@pytest.mark.parametrize(("preset", "other"), ALIKE.items())
def test_presets_that_train_as_another_does_differ_in_size_and_memory_alone(preset: str, other: str) -> None:
    first, second = (
        values_of(resolve(preset=each, config_file=None, flags={}, sets=[], working_folder=Path.cwd()).config)
        for each in (preset, other)
    )
    differ = {key for key in first if first[key] != second[key]}
    assert differ <= {"dataset.resolution", "memory.budget"}


@pytest.mark.parametrize(
    "preset", [pytest.param(each, marks=[pytest.mark.slow] if each in ALIKE else []) for each in PRESETS]
)
def test_every_preset_trains_a_step_with_all_its_toggles(
    preset: str, tiny_flux: Path, few_pictures: Path, tmp_path: Path
) -> None:
    small = ["dataset.resolution=[128]", "training.device=cpu", "training.steps=1", "previews.every=0"]
    folder = f"dataset.folders=[{{path='{few_pictures}'}}]"
    config = resolve(
        preset=preset,
        config_file=None,
        flags={"model.base": ("--base", str(tiny_flux)), "dataset.trigger": ("--trigger", "zorvex")},
        sets=[*small, folder],
        working_folder=tmp_path,
    ).config
    run = train_in(tmp_path / "mug", config, cache=tmp_path / "cache")
    assert any(bool(tensor.any()) for name, tensor in run.tensors.items() if ".lora_B." in name)


def test_encoders_are_gone_from_memory_when_the_transformer_loads(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encoders() -> int:
        gc.collect()
        kinds = (AutoencoderKL, CLIPTextModel, T5EncoderModel)
        return sum(isinstance(thing, kinds) for thing in gc.get_objects())

    before, counted = encoders(), []
    load: Callable[..., Any] = load_module.load_transformer

    def counting(*arguments: Any) -> Any:
        counted.append(encoders())
        return load(*arguments)

    monkeypatch.setattr(load_module, "load_transformer", counting)
    config = plain_config(tiny_flux, few_pictures, training__steps=1)
    train_in(tmp_path / "mug", config, cache=tmp_path / "cache")
    assert counted == [before]


def test_a_loss_that_is_no_number_ends_the_run_as_diverged(tiny_flux: Path, few_pictures: Path, tmp_path: Path) -> None:
    config = plain_config(tiny_flux, few_pictures, training__steps=2, training__divergence={"action": "stop"})
    train_in(tmp_path / "fine", config, cache=tmp_path / "cache")
    (texts,) = (tmp_path / "cache").glob("texts-*")
    for shard in list(texts.iterdir()):
        keys = {name.split("/")[0] for name in load_file(shard)}
        entries = {key: Store(texts).read(key) for key in keys}
        shard.unlink()
        for key, entry in entries.items():
            Store(texts).write(key, {name: tensor * torch.nan for name, tensor in entry.items()})
    with pytest.raises(DivergedError, match=r"steps 1 to 2 were skipped.* on .*0\.png, .*1\.png") as error:
        train_in(tmp_path / "mug", config, cache=tmp_path / "cache")
    assert error.value.exit_code == 7
    assert Run.open(tmp_path / "mug").state.status == "failed"
    assert not (tmp_path / "mug" / "mug.safetensors").exists()
    last = json.loads((tmp_path / "mug" / "events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["code"]) == ("error", 7)
