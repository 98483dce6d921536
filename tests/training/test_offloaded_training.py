"""Runs with blocks and activations in system memory: the same numbers, the same file, resumed as others are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import Trained, config_for, stop_after, train_in

from fluxtune.errors import Stopped, UsageError
from fluxtune.memory.activations import ActivationOffload
from fluxtune.memory.transfers import Transfers


def same_tensors(one: Trained, other: Trained) -> bool:
    return set(one.tensors) == set(other.tensors) and all(
        torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items()
    )


@pytest.fixture(scope="module")
def plain(tiny_flux: Path, few_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Every block recomputed on the device, with preservation and previews."""
    folder = tmp_path_factory.mktemp("plain")
    config = config_for(tiny_flux, few_pictures, memory__recompute="all")
    return train_in(folder / "mug", config, cache=folder / "cache")


@pytest.mark.parametrize(("blocks", "recompute"), [(4, "none"), (3, "all")])
def test_a_run_with_streamed_blocks_learns_the_same_to_the_bit(
    plain: Trained, tiny_flux: Path, few_pictures: Path, tmp_path: Path, blocks: int, recompute: str
) -> None:
    config = config_for(tiny_flux, few_pictures, memory__streamed_blocks=blocks, memory__recompute=recompute)
    other = train_in(tmp_path / "mug", config, cache=plain.cache)
    assert other.losses == plain.losses
    assert same_tensors(other, plain)
    previews = sorted(path.relative_to(plain.folder) for path in (plain.folder / "previews").rglob("*.png"))
    assert previews
    assert all((other.folder / path).read_bytes() == (plain.folder / path).read_bytes() for path in previews)


def test_a_run_with_offloaded_activations_learns_the_same_to_the_bit(
    plain: Trained, tiny_flux: Path, few_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tiny model's are small.
    monkeypatch.setattr(ActivationOffload, "smallest", 1)
    moved: list[int] = []
    download = Transfers.download
    monkeypatch.setattr(Transfers, "download", lambda self, *both: moved.append(1) or download(self, *both))
    config = config_for(tiny_flux, few_pictures, memory__offload_activations=True, memory__recompute="all")
    other = train_in(tmp_path / "mug", config, cache=plain.cache)
    assert other.losses == plain.losses
    assert same_tensors(other, plain)
    assert moved


def test_a_run_is_resumed_with_streamed_blocks_to_the_same_file(
    plain: Trained, tiny_flux: Path, few_pictures: Path, tmp_path: Path
) -> None:
    config = config_for(tiny_flux, few_pictures, memory__streamed_blocks=2, memory__recompute="all")
    with pytest.raises(Stopped):
        train_in(tmp_path / "mug", config, cache=plain.cache, should_stop=stop_after(3))
    saved = {path.name for path in (tmp_path / "mug" / "checkpoints" / "step-000003" / "state").iterdir()}
    assert saved == {"adapter.safetensors", "average.safetensors", "optimizer.safetensors", "run.json"}
    other = train_in(tmp_path / "mug", config, cache=plain.cache, resume=tmp_path / "mug")
    assert same_tensors(other, plain)


def test_more_streamed_blocks_than_there_are_is_an_error_of_the_setting(
    plain: Trained, tiny_flux: Path, few_pictures: Path, tmp_path: Path
) -> None:
    config = config_for(tiny_flux, few_pictures, memory__streamed_blocks=58)
    with pytest.raises(UsageError, match="58 blocks shall be streamed, and the base model has 4") as error:
        train_in(tmp_path / "mug", config, cache=plain.cache)
    assert error.value.where == "memory.streamed_blocks"
