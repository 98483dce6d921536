"""The README says what is true."""

from __future__ import annotations

from pathlib import Path

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


def test_every_shipped_preset_is_in_the_table() -> None:
    for preset in (ROOT / "presets").glob("*.toml"):
        assert f"`{preset.stem}`" in README


def test_every_linked_file_exists() -> None:
    import re

    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
