"""Ask a library something in a process of its own, so that one that crashes or hangs is an answer, too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

PATIENCE = 300.0
"""Seconds; a first import from a slow disk, on a busy machine, takes minutes."""


@dataclass(frozen=True)
class Broken:
    """It could not be asked.

    Attributes:
        words: the error's, or how the process ended.
        slow: it may be whole, and only gave no answer in time.
    """

    words: str
    slow: bool = False


def ask(question: str, *arguments: str, patience: float = PATIENCE) -> dict[str, Any] | Broken:
    """The answer of the function of `fluxtune.doctor.probes` that is called ``question``."""
    # The same places to import from as here, in the same order.
    code = f"import sys; sys.path[:] = {sys.path!r}; from fluxtune.doctor.probes import main; main()"
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1", "TRANSFORMERS_VERBOSITY": "error"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, question, *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=patience,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Broken(f"it gave no answer within {patience:.0f} s", slow=True)
    if done.returncode != 0 or not done.stdout:
        return Broken(_ending(done.returncode, done.stderr))
    answer: dict[str, Any] = json.loads(done.stdout)
    return Broken(answer["broken"]) if "broken" in answer else answer


def _ending(code: int, stderr: str) -> str:
    """How a process ended that gave no answer, with the last place that Python's fault handler saw."""
    if code < 0:
        names = {member.value: member.name for member in signal.Signals}
        how = f"it crashed with {names.get(-code, f'signal {-code}')}"
    else:
        how = f"it ended with exit code {code:#x}" if code > 255 else f"it ended with exit code {code}"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    place = next((line for line in lines if line.startswith("File ")), lines[-1] if lines else "")
    return f"{how}: {place}" if place else how
