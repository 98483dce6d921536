"""What all benchmarks leave behind: their figures as JSON, printed, and written where that is asked for."""

from __future__ import annotations

import json
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def heading(command: str) -> dict[str, Any]:
    """When, of which commit, and with which command figures are made."""
    asked = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    return {"date": date.today().isoformat(), "commit": commit, "command": command}


def publish(figures: dict[str, Any], output: Path | None) -> None:
    """Print the figures, and write them to a file."""
    text = json.dumps(figures, indent=2)
    print(text)
    if output is not None:
        write(figures, output)


def write(figures: dict[str, Any], output: Path) -> None:
    """Write the figures to a file."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
