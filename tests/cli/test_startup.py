from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes")
COMMANDS = {
    "--help": 0,
    "--version": 0,
    "train --help": 0,
    "sample --help": 0,
    "export --help": 0,
    "export dataset --help": 0,
    "export dataset photos": 2,
    "export config --help": 0,
    "export config photos": 2,
    "export config --preset nano --to onetrainer --output there": 0,
    "import config set.yaml": 2,
    "import config job.yaml --output ours.toml": 0,
    "validate set.yaml": 2,
    "doctor --help": 0,
    "presets": 0,
    "presets --json": 0,
    "train --preset nano --explain": 0,
    "train --preset 24gb --explain --json": 0,
    "train photos --preset 24g": 2,
    "train photos --steps 0": 2,
    "train --preset 24gb": 2,
    "train --stesp 5": 2,
    "train --resume nowhere": 2,
}
RUN_ALL = f"""
import contextlib, io, json, sys
from fluxtune.cli.app import main
seen = {{}}
for line in sys.argv[1:]:
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())):
        code = main(line.split())
    seen[line] = int(code), [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps(seen))
"""
ROOMS = (
    "",
    ".config.layers",
    ".cli.app",
    ".events",
    ".errors",
    ".files",
    ".runs",
    ".hub",
    ".environment.device",
    ".rng",
)


def test_nothing_heavy_is_imported_before_training(tmp_path: Path) -> None:
    (tmp_path / "set.yaml").write_text("datasets:\n  - folder_path: 5\n", encoding="utf-8")
    job = (
        "config: {name: a, process: [{type: sd_trainer, model: {is_flux: true}, datasets: [{folder_path: photos}]}]}\n"
    )
    (tmp_path / "job.yaml").write_text(job, encoding="utf-8")
    seen = json.loads(_python(RUN_ALL, *COMMANDS, folder=tmp_path))
    assert seen == {line: [code, []] for line, code in COMMANDS.items()}


def test_light_rooms_import_nothing_heavy(tmp_path: Path) -> None:
    imports = "; ".join(f"import fluxtune{room}" for room in ROOMS)
    report = f"print([name for name in {HEAVY!r} if name in sys.modules])"
    assert _python(f"import sys; {imports}; {report}", folder=tmp_path).strip() == "[]"


def test_completion_imports_nothing_heavy(tmp_path: Path) -> None:
    complete = f"""
import os, sys
from fluxtune.cli.app import main
os.environ.update(_FLUXTUNE_COMPLETE="complete_bash", COMP_WORDS="fluxtune train --preset 2", COMP_CWORD="3")
try:
    main([])
except SystemExit:
    print([name for name in {HEAVY!r} if name in sys.modules])
"""
    assert _python(complete, folder=tmp_path).splitlines() == ["24gb", "24gb-bf16", "[]"]


def _python(code: str, *arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=folder, check=True
    )
    return done.stdout
