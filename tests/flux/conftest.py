"""Fixtures: the tiny FLUX as ``open_base`` sees it, and a copy of it that a test may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fluxtune.config.model import ModelConfig
from fluxtune.flux.base import Base, open_base


@pytest.fixture(scope="session")
def base(tiny_flux: Path) -> Base:
    """The tiny FLUX, opened."""
    return open_base(ModelConfig(base=str(tiny_flux)))


@pytest.fixture
def own_copy(tiny_flux: Path, tmp_path: Path) -> Path:
    """A copy of the tiny FLUX's folder."""
    return Path(shutil.copytree(tiny_flux, tmp_path / "flux"))
