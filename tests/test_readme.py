"""The README says what is true."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path
from typing import Any

from typer.main import get_command

from fluxtune.cli.app import app
from fluxtune.config.layers import resolve
from fluxtune.config.schema import Config
from fluxtune.errors import ExitCode

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_exit_codes_is_the_enum() -> None:
    rows = [f"| {code.value} | {code.meaning} |" for code in ExitCode]
    table = "\n".join(["| code | meaning |", "| --- | --- |", *rows])
    assert table in README


def test_the_example_settings_are_valid() -> None:
    import tomli

    example = README.split("```toml\n")[1].split("```")[0]
    assert Config.model_validate(tomli.loads(example)).dataset.trigger == "zorvex"


def test_the_table_of_presets_says_what_they_set(tmp_path: Path) -> None:
    held = {"bf16": "bf16", "nf4": "NF4", "int8": "8-bit"}
    rows = [line.strip("| ").split(" | ") for line in README.split("### Presets")[1].splitlines() if "gb" in line[:9]]
    told = {name.strip("`"): columns for name, *columns in rows}
    assert sorted([*told, "nano"]) == sorted(preset.stem for preset in (ROOT / "presets").glob("*.toml"))
    for name, (base, pixels, batch, *_) in told.items():
        config = resolve(preset=name, config_file=None, flags={}, sets=[], working_folder=tmp_path).config
        assert base == held[config.memory.base_precision], name
        assert [int(pixels)] == config.dataset.resolution, name
        assert int(batch) == config.training.batch_size, name


def test_every_command_in_it_is_understood() -> None:
    known = "train|validate|caption|sample|export|import|presets|doctor"
    found = re.findall(rf"(?:^|`|-m )(fluxtune (?:{known})[^`\n]*)", README, re.MULTILINE)
    found = [command for command in found if "..." not in command]
    assert len(found) >= 6
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for command in found:
        name, *arguments = shlex.split(command)[1:]
        # Reads the arguments as the command would, down to their types, and runs nothing.
        commands[name].make_context(name, arguments)


def test_the_python_example_makes_its_settings_and_calls_what_there_is() -> None:
    *prepare, call = README.split("```python\n")[1].split("```")[0].strip().splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(prepare), names)
    assert names["settings"].config.training.steps == 300
    assert call.startswith("train(settings.config, output=")
    assert {"output", "on_event"} <= set(inspect.signature(names["train"]).parameters)


def test_every_linked_file_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
