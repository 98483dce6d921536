"""Ask an advisory database about the versions in constraints.txt, with pip-audit; skips where none can be reached.

Exit code 0: nothing is known against them, or it could not be asked, which is said. 1: something is known.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 90
"""Seconds for the whole list."""


def main(arguments: list[str] | None = None) -> int:
    """Audit, and say what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--require", action="store_true", help="versions that could not be asked about are a failure")
    required = parser.parse_args(arguments).require
    program = shutil.which("pip-audit")
    if program is None:
        return skipped("pip-audit is not installed: pip install pip-audit", required)
    with tempfile.TemporaryDirectory() as folder:
        # --no-deps: the list is complete.
        command = [program, "--requirement", str(ROOT / "constraints.txt"), "--no-deps", "--disable-pip"]
        command += ["--format", "json", "--progress-spinner", "off", "--timeout", "15", "--cache-dir", folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return skipped(f"no answer within {PATIENCE} s", required)
    try:
        rows = json.loads(done.stdout)["dependencies"]
    except (ValueError, LookupError, TypeError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return skipped(f"pip-audit gave no report: {last[:300]}", required)
    return judged(rows, required)


def judged(rows: list[dict[str, object]], required: bool) -> int:
    """Say what a report of pip-audit comes to; it calls a list clean of which it could look up nothing."""
    known = [row for row in rows if row.get("vulns")]
    unasked = [str(row["name"]) for row in rows if "vulns" not in row]
    for row in known:
        found = ", ".join(str(each["id"]) for each in row["vulns"])  # type: ignore[attr-defined]
        print(f"{row['name']} {row['version']}: {found}")
    if known:
        return 1
    if len(unasked) == len(rows):
        why = next((f": {row['skip_reason']}" for row in rows if row.get("skip_reason")), "")
        return skipped(f"the advisory database that was reached knows none of these packages{why}", required)
    print(f"nothing is known against {len(rows) - len(unasked)} of {len(rows)} versions")
    return skipped(f"no answer about {', '.join(unasked)}", required) if unasked else 0


def skipped(reason: str, required: bool) -> int:
    """Say what was not asked, so that nobody takes it for a clean answer."""
    print(f"audit SKIPPED: {reason}", file=sys.stderr)
    return 1 if required else 0


if __name__ == "__main__":
    sys.exit(main())
