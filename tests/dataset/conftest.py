"""Pictures for the data set's tests: real photographs, and folders made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import skimage.data
from PIL import Image

from fluxtune.config.dataset import DatasetConfig, FolderConfig
from fluxtune.events import Event

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


@pytest.fixture(scope="session")
def photographs() -> dict[str, Image.Image]:
    """Real photographs of several shapes, small enough that a test takes no time."""
    pictures = {name: Image.fromarray(getattr(skimage.data, name)()) for name in PHOTOGRAPHS}
    return {name: picture.resize((picture.width // 2, picture.height // 2)) for name, picture in pictures.items()}


@pytest.fixture
def photo_folder(tmp_path: Path, photographs: dict[str, Image.Image]) -> Path:
    """The photographs as PNGs, each with a caption beside it."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, picture in photographs.items():
        picture.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a photo of {name}", encoding="utf-8")
    return folder


@pytest.fixture
def config_for() -> Callable[..., DatasetConfig]:
    """Settings for one folder."""

    def config(folder: Path | str, repeats: int = 1, **settings: object) -> DatasetConfig:
        row = FolderConfig(path=str(folder), repeats=repeats)
        return DatasetConfig.model_validate({"folders": [row], **settings})

    return config


@pytest.fixture
def events() -> list[Event]:
    """A list whose ``append`` is an event sink."""
    return []
