"""A real command that is interrupted where its JSON lines say that it has come to a place."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def interrupted(
    arguments: list[str],
    folder: Path,
    reached: Callable[[dict[str, Any]], bool],
    number: signal.Signals = signal.SIGINT,
) -> tuple[int, str, str]:
    """Run ``fluxtune ARGUMENTS`` in a folder, with a signal, Ctrl-C, at the first event that ``reached`` accepts.

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
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err
