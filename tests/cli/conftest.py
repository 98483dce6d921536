from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fluxtune.cli.app import main


class Outcome(NamedTuple):
    """What a command left behind: its exit code and both streams."""

    code: int
    out: str
    err: str

    def records(self) -> list[dict[str, Any]]:
        """The JSON lines on stdout."""
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def fluxtune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Run a `fluxtune` command in an empty working folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Outcome:
        code = main(list(arguments))
        return Outcome(int(code), *capsys.readouterr())

    return run
