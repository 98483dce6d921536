"""Pictures that ask for more memory or time than they are worth get neither."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from bombs import BOMBS

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="the memory of a process is asked of POSIX"),
    pytest.mark.xdist_group("bombs"),
]

_LOOK = """
import json, resource, sys, time
from pathlib import Path
from bombs import BOMBS
from fluxtune.dataset.images import read_image
from fluxtune.errors import DataError

file, told = Path(sys.argv[1]), {}
for kind, make in BOMBS.items():
    file.write_bytes(make())
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        seen = read_image(file, "#ffffff")[1].format
    except DataError as error:
        seen = error.check
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    told[kind] = {"seen": seen, "seconds": time.process_time() - started, "MiB": grown}
print(json.dumps(told))
"""


@pytest.fixture(scope="session")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Of each bomb what was told, the seconds that took and how the process grew; all in one process."""
    file = tmp_path_factory.mktemp("bombs") / "bomb"
    call = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{_LOOK}", str(file)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_takes_little_memory_and_time(seen: dict[str, dict[str, Any]], kind: str) -> None:
    assert seen[kind]["MiB"] < 100
    assert seen[kind]["seconds"] < 60  # unbounded they take many minutes


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_or_is_the_small_picture_that_it_is(seen: dict[str, dict[str, Any]], kind: str) -> None:
    harmless = ("itself", "EXIF")
    expected = {"too-large", "damaged", "not-a-picture", "animated"}
    assert (seen[kind]["seen"] in expected) != any(word in kind for word in harmless)
