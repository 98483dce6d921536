from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny_captioners
from PIL import Image
from squares import NAMES


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for index, name in enumerate(NAMES):
        Image.new("RGB", (32, 32), (60 * index, 100, 50)).save(folder / f"{name}.png")
    Image.new("RGB", (32, 32), "blue").save(folder / "more" / "e.png")
    return folder


@pytest.fixture
def captioner(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stands in for a model: what is tested here is what happens to its words. Holds how many it was given."""
    given: list[int] = []

    def say(images: Sequence[Image.Image]) -> list[str]:
        given.append(len(images))
        return [f"a square {len(given)}" for _ in images]

    monkeypatch.setattr("fluxtune.captioning.run.open_captioner", lambda *_: say)
    return given


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny captioner of each family; to be copied before anything in it is changed."""
    root = tmp_path_factory.mktemp("captioners")
    return {name: make(root / name) for name, make in tiny_captioners.FAMILIES.items()}
