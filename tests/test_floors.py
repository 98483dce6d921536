from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parent.parent
LIGHT = (
    "errors",
    "files",
    "rng",
    "events",
    "runs",
    "hub.locate",
    "environment.device",
    "environment.card",
    "doctor.examination",
    "config.schema",
    "config.layers",
)


def test_imports_go_down_the_floors(capsys: pytest.CaptureFixture[str]) -> None:
    code = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert code == 0, capsys.readouterr().out


def test_what_runs_before_training_imports_no_torch() -> None:
    imports = "; ".join(f"import fluxtune.{name}" for name in LIGHT)
    heavy = "[name for name in ('torch', 'diffusers', 'transformers', 'peft', 'accelerate') if name in sys.modules]"
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; {imports}; print({heavy})"], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
