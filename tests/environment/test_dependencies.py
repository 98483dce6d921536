"""What pyproject.toml promises of dependencies is what the tests are run with; the audit is never silently clean."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROMISED = [
    Requirement(text)
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
]


def pinned(file: str) -> dict[str, Version]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    rows = [line.partition("#")[0].strip() for line in lines]
    return {name: Version(version) for name, _, version in (row.partition("==") for row in rows if row)}


def floor(requirement: Requirement) -> Version:
    (lowest,) = [Version(each.version) for each in requirement.specifier if each.operator == ">="]
    return lowest


def test_the_lowest_versions_are_the_floors_of_all_but_torch() -> None:
    lowest = pinned("constraints-lowest.txt")
    assert lowest.pop("torch") == pinned("constraints.txt")["torch"]
    assert lowest == {each.name: floor(each) for each in PROMISED if each.name != "torch"}


@pytest.mark.parametrize("requirement", PROMISED, ids=lambda requirement: requirement.name)
def test_the_tested_version_is_within_what_is_promised(requirement: Requirement) -> None:
    tested = pinned("constraints.txt")[requirement.name]
    assert requirement.specifier.contains(tested)
    assert floor(requirement) <= tested


def audit(tmp_path: Path, script: str | None, *flags: str) -> subprocess.CompletedProcess[str]:
    """The audit with this program in the place of pip-audit, or without any."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    if script is not None:
        (tools / "pip-audit").write_text(f"#!{sys.executable}\nimport sys\n{script}\n")
        (tools / "pip-audit").chmod(0o755)
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "audit.py"), *flags],
        env={**os.environ, "PATH": str(tools)},
        capture_output=True,
        text=True,
        timeout=60,
    )


UNASKED = {"name": "torch", "skip_reason": "not found"}
CLEAN = {"name": "pillow", "version": "13.0.0", "vulns": []}
KNOWN = {"name": "pillow", "version": "13.0.0", "vulns": [{"id": "GHSA-x"}, {"id": "GHSA-y"}]}

posix = pytest.mark.skipif(os.name == "nt", reason="the stand-in is a script with a first line")


def reporting(*rows: dict[str, object]) -> str:
    return f"import json; print(json.dumps({{'dependencies': {list(rows)!r}}}))"


@posix
@pytest.mark.parametrize("script", [None, "sys.exit('Max retries exceeded')", reporting(UNASKED), reporting()])
def test_an_audit_that_could_not_ask_says_so_and_fails_only_where_it_must(tmp_path: Path, script: str | None) -> None:
    done = audit(tmp_path, script)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("audit SKIPPED: ")
    assert ("none of these packages: not found" in done.stderr) == (script == reporting(UNASKED))
    assert audit(tmp_path, script, "--require").returncode == 1


@posix
def test_a_known_vulnerability_fails_the_audit(tmp_path: Path) -> None:
    done = audit(tmp_path, reporting(CLEAN, KNOWN, UNASKED))
    assert (done.returncode, done.stdout) == (1, "pillow 13.0.0: GHSA-x, GHSA-y\n")


@posix
def test_a_clean_audit_says_of_how_many_versions_and_which_were_not_asked(tmp_path: Path) -> None:
    done = audit(tmp_path, reporting(CLEAN), "--require")
    assert (done.returncode, done.stdout, done.stderr) == (0, "nothing is known against 1 of 1 versions\n", "")
    done = audit(tmp_path, reporting(CLEAN, UNASKED))
    assert (done.returncode, done.stdout) == (0, "nothing is known against 1 of 2 versions\n")
    assert done.stderr == "audit SKIPPED: no answer about torch\n"


@posix
def test_the_audit_asks_about_every_pinned_version(tmp_path: Path) -> None:
    asked = audit(tmp_path, "sys.exit(' '.join(sys.argv))").stderr
    assert str(ROOT / "constraints.txt") in asked and "--no-deps" in asked
