"""Fixtures: runs that several tests look at, trained once a session."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import Trained, config_for, small_pictures, train_in


@pytest.fixture(scope="session")
def few_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three captioned pictures of two shapes."""
    return small_pictures(tmp_path_factory.mktemp("few"))


@pytest.fixture(scope="session")
def trained(tiny_flux: Path, few_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Six steps with everything on: dropout, averages, preservation, previews, checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    return train_in(folder / "mug", config_for(tiny_flux, few_pictures), cache=folder / "cache")


@pytest.fixture(scope="session")
def trained_again(tiny_flux: Path, few_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The same run in another folder, with a cache of its own."""
    folder = tmp_path_factory.mktemp("again")
    return train_in(folder / "mug", config_for(tiny_flux, few_pictures), cache=folder / "cache")
