"""Make a virtual environment with fluxtune and the tested versions in it. Needs Python 3.11 and nothing else."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Run = Callable[..., None]
"""What is done with a command: `run`, or only to show it."""

ROOT = Path(__file__).resolve().parent.parent


def ready_python(description: str, extra: str = "") -> str:
    """Install fluxtune into the environment that the command line names; returns that environment's Python.

    Args:
        description: what the calling script does, for ``--help``.
        extra: optional dependencies to install as well, for instance ``[test]``.
    """
    python = make_environment(options(description).parse_args().environment, run)
    install(python, run, extra)
    return python


def options(description: str) -> argparse.ArgumentParser:
    """The command line of a script that makes an environment."""
    if sys.version_info < (3, 11):  # noqa: UP036  (this file runs before pip could check)
        sys.exit(f"error: Python {sys.version.split()[0]} is too old\n\nhint: run this with Python 3.11 or newer")
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--environment", type=Path, default=ROOT / ".venv", help="where the environment is made")
    return parser


def make_environment(folder: Path, run: Run) -> str:
    """Make an environment there unless there is a whole one; returns its Python."""
    folder = folder.resolve()
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not _has_pip(python):
        say(f"making an environment in {folder}")
        # A half-made one is made anew; a folder that is none keeps what is in it.
        clear = ["--clear"] if (folder / "pyvenv.cfg").exists() else []
        run([sys.executable, "-m", "venv", *clear, str(folder)], hint="on Debian and Ubuntu: apt install python3-venv")
    return str(python)


def install(python: str, run: Run, extra: str = "", constraints: str | None = "constraints.txt") -> None:
    """Install fluxtune with the versions in a file of constraints, if one is named."""
    say("installing fluxtune (the first time this downloads PyTorch)")
    pinned = ["--constraint", str(ROOT / constraints)] if constraints else []
    run(
        [python, "-m", "pip", "install", "--quiet", *pinned, "--editable", f"{ROOT}{extra}"],
        hint="check the network; a graphics card may need another PyTorch: see README.md, Install",
    )


def run(command: list[str], hint: str = "", **environment: str) -> None:
    """Run a command in the project's folder and stop with its exit code if it fails."""
    code = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}).returncode
    if code:
        print(f"\nerror: this failed with exit code {code}: {' '.join(command)}", file=sys.stderr)
        if hint:
            print(f"\nhint: {hint}", file=sys.stderr)
        sys.exit(code)


def _has_pip(python: Path) -> bool:
    """Whether that Python runs and has pip: not so where making the environment was cut off."""
    try:
        return subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True).returncode == 0
    except OSError:
        return False


def say(text: str) -> None:
    """One line of progress."""
    print(f"== {text}", file=sys.stderr, flush=True)
