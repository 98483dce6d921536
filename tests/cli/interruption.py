"""A command that is interrupted where its JSON lines say that it has come to a place."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

from fluxtune.cli.app import main

Reached = Callable[[dict[str, Any]], bool]
"""Whether an event is the one at which the signal comes."""


def interrupted_here(
    arguments: list[str], folder: Path, reached: Reached, number: signal.Signals = signal.SIGINT
) -> tuple[int, str]:
    """Run ``fluxtune ARGUMENTS`` in this process and a folder, with a signal at the first event that is ``reached``.

    Returns:
        The exit code, and all that came on stdout.
    """
    stdout = _Raising(reached, number)
    with chdir(folder), redirect_stdout(stdout):
        code = int(main(arguments))
    stdout.seek(0)
    return code, stdout.read()


class _Raising(io.TextIOWrapper):
    def __init__(self, reached: Reached, number: signal.Signals) -> None:
        super().__init__(io.BytesIO(), "utf-8")
        self._reached, self._number, self._waits = reached, number, True

    def write(self, line: str) -> int:
        size = super().write(line)
        if self._waits and self._reached(json.loads(line)):
            self._waits = False
            signal.raise_signal(self._number)
        return size


def interrupted(
    arguments: list[str], folder: Path, reached: Reached, number: signal.Signals = signal.SIGINT
) -> tuple[int, str, str]:
    """The same in a process of its own, where the signal comes somewhat after that event.

    Returns:
        The exit code, what came on stdout after that event, and stderr.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "fluxtune", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if reached(json.loads(line)):
            process.send_signal(number)
            break
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err
