"""Masks, weights and regularization pictures act in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_runs import config_for, plain_config, small_pictures, train_in

from fluxtune.config.schema import Config
from fluxtune.events import ignore
from fluxtune.flux.objective import flow_matching_loss, mask_weights
from fluxtune.training.preflight import preflight
from fluxtune.training.prepare import prepare
from fluxtune.training.samples import Samples, SampleSource


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """Two pictures, of which the first has a mask: its left half."""
    folder = small_pictures(tmp_path / "masked", ((128, 128), (128, 128)))
    mask = Image.new("L", (128, 128), 0)
    mask.paste(255, (0, 0, 64, 128))
    mask.save(folder / "0-masklabel.png")
    return folder


def source_of(config: Config) -> SampleSource:
    ready = preflight(config, ignore)
    prepared = prepare(config, ready.base, ready.pictures, ready.prompts, torch.float32, "cpu", ignore)
    return SampleSource(config, prepared, [], "cpu")


def sample_of(config: Config, step: int = 0) -> Samples:
    return source_of(config).at(step)


def test_outside_a_mask_the_loss_counts_as_the_setting_says(tiny_flux: Path, masked: Path) -> None:
    config = plain_config(tiny_flux, masked, dataset__unmasked_weight=0.25, training__batch_size=2)
    source = source_of(config)
    weights = source.at(0).subject.weights
    assert weights is not None and weights.shape == (2, 1, 8, 8)
    first = [Path(picture).stem for picture in source.pictures(0)].index("0")
    left, right = weights[first, 0, :, :4], weights[first, 0, :, 4:]
    assert torch.allclose(right / left, torch.tensor(0.25))
    assert weights[first].mean() == pytest.approx(1.0)
    assert torch.equal(weights[1 - first], torch.ones(1, 8, 8))


def test_without_masks_and_weights_there_are_no_weights(tiny_flux: Path, few_pictures: Path) -> None:
    assert sample_of(plain_config(tiny_flux, few_pictures)).subject.weights is None


def test_the_weighted_loss_ignores_what_weighs_nothing() -> None:
    velocity, target = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    target[..., 1] = 50
    weights = mask_weights(torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), 0.0)[None]
    assert flow_matching_loss(velocity, target, weights).item() == pytest.approx(1.0)


def test_under_a_black_mask_everything_counts_as_what_is_outside_of_masks() -> None:
    assert torch.equal(mask_weights(torch.zeros(1, 2, 2), 0.25), torch.full((1, 2, 2), 0.25))


def test_a_folders_weight_scales_its_loss(tiny_flux: Path, few_pictures: Path) -> None:
    rows = [{"path": str(few_pictures), "weight": 0.25}]
    weights = sample_of(plain_config(tiny_flux, few_pictures, dataset__folders=rows)).subject.weights
    assert weights is not None and torch.equal(weights, torch.full_like(weights, 0.25))


def regularized(base: Path, pictures: Path, others: Path, **changes: Any) -> Config:
    rows = [{"path": str(pictures)}, {"path": str(others), "kind": "regularization", "weight": 0.5}]
    return plain_config(base, pictures, dataset__folders=rows, training__batch_size=1, **changes)


def test_regularization_pictures_get_no_trigger(tiny_flux: Path, few_pictures: Path, tmp_path: Path) -> None:
    others = small_pictures(tmp_path / "others", ((128, 128),))
    (others / "0.txt").write_text("a red critter")
    pictures = preflight(regularized(tiny_flux, few_pictures, others), ignore).pictures
    assert (pictures[-1].caption, pictures[-1].is_subject) == ("a red critter", False)
    assert all("zorvex" in picture.caption for picture in pictures[:-1])


def test_regularization_pictures_without_captions_are_called_by_the_class_word(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path
) -> None:
    others = small_pictures(tmp_path / "others", ((128, 128),))
    (others / "0.txt").unlink()
    assert preflight(regularized(tiny_flux, few_pictures, others), ignore).pictures[-1].caption == "critter"


def test_masks_weights_and_regularization_train_together_with_preservation(
    tiny_flux: Path, masked: Path, tmp_path: Path
) -> None:
    others = small_pictures(tmp_path / "others", ((160, 96),))
    rows = [{"path": str(masked)}, {"path": str(others), "kind": "regularization", "weight": 0.5, "repeats": 2}]
    config = config_for(tiny_flux, masked, dataset__folders=rows, previews__every=0)
    cache = tmp_path / "cache"
    trained = train_in(tmp_path / "with", config, cache=cache)
    again = train_in(tmp_path / "again", config, cache=cache)
    plain = train_in(tmp_path / "without", config_for(tiny_flux, masked, dataset__folders=[
        {**row, "masks": "none", "weight": 1.0} for row in rows
    ], previews__every=0), cache=cache)  # fmt: skip
    assert trained.losses == again.losses
    assert trained.losses != plain.losses
    assert all(bool(tensor.isfinite().all()) for tensor in trained.tensors.values())


def test_a_changed_mask_is_fitted_anew(tiny_flux: Path, masked: Path, tmp_path: Path) -> None:
    config = plain_config(tiny_flux, masked, training__batch_size=2)
    before = sample_of(config).subject.weights
    Image.new("L", (128, 128), 255).save(masked / "0-masklabel.png")
    after = sample_of(config).subject.weights
    assert before is not None and after is not None
    assert not torch.equal(before, after)
