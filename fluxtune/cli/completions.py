"""Writes the completion scripts: `python -m fluxtune.cli.completions FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from typer.completion import get_completion_script

PROGRAM = "fluxtune"
VARIABLE = "_FLUXTUNE_COMPLETE"
FILES = {"bash": "fluxtune.bash", "zsh": "_fluxtune", "fish": "fluxtune.fish", "powershell": "fluxtune.ps1"}

_AUTOLOADED = f"""
# zsh runs this file as a function the first time it completes; complete that time too.
if [ "$funcstack[1]" = _{PROGRAM} ]; then
  _{PROGRAM}_completion "$@"
fi
"""


def scripts() -> dict[str, str]:
    """File name -> content of the completion script of each shell."""
    written = {
        FILES[shell]: get_completion_script(prog_name=PROGRAM, complete_var=VARIABLE, shell=shell) + "\n"
        for shell in FILES
    }
    written[FILES["zsh"]] += _AUTOLOADED
    return written


if __name__ == "__main__":
    for name, content in scripts().items():
        (Path(sys.argv[1]) / name).write_text(content, encoding="utf-8")
