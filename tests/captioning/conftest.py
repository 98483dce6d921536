from __future__ import annotations

from pathlib import Path

import pytest
import tiny_captioners


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny captioner of each family; to be copied before anything in it is changed."""
    root = tmp_path_factory.mktemp("captioners")
    return {name: make(root / name) for name, make in tiny_captioners.FAMILIES.items()}
