"""Ask an advisory database about the versions in constraints.txt, with pip-audit; skips where none can be reached.

Exit code 0: nothing is known against them, or it could not be asked, which is said. 1: something is known.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 60
"""Seconds for the whole database."""

# What pip-audit says when it is the network or the service that fails, and no advisory was found.
_UNREACHABLE = ("connection", "timed out", "timeout", "resolve", "unreachable", "max retries", "proxy", "ssl", "503")


def main(arguments: list[str] | None = None) -> int:
    """Audit, and say what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--require", action="store_true", help="a database that cannot be asked is a failure")
    required = parser.parse_args(arguments).require
    program = shutil.which("pip-audit")
    if program is None:
        return skipped("pip-audit is not installed: pip install pip-audit", required)
    with tempfile.TemporaryDirectory() as folder:
        # Local builds such as 2.13.0+cpu are in no database; --no-deps since the list is complete.
        command = [program, "--requirement", str(ROOT / "constraints.txt"), "--no-deps", "--disable-pip"]
        command += ["--progress-spinner", "off", "--timeout", "15", "--cache-dir", folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return skipped(f"no answer from the advisory database within {PATIENCE} s", required)
    told = f"{done.stdout}{done.stderr}".strip()
    if done.returncode and not done.stdout.strip() and any(word in told.lower() for word in _UNREACHABLE):
        return skipped(f"no advisory database can be reached ({told.splitlines()[-1][:200]})", required)
    print(told)
    return 1 if done.returncode else 0


def skipped(reason: str, required: bool) -> int:
    """Say that nothing was asked, so that nobody takes it for a clean answer."""
    print(f"audit SKIPPED, nothing was checked: {reason}", file=sys.stderr)
    return 1 if required else 0


if __name__ == "__main__":
    sys.exit(main())
