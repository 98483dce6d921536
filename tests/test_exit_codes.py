from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from fluxtune import errors
from fluxtune.errors import ConfigError, ExitCode, FluxtuneError, Stopped, StorageError, UsageError

CODES = {
    "DONE": 0,
    "UNEXPECTED": 1,
    "USAGE": 2,
    "DATA": 3,
    "MEMORY": 4,
    "BASE_MODEL": 5,
    "STORAGE": 6,
    "DIVERGED": 7,
    "VERIFICATION": 8,
    "STRICT": 9,
    "STOPPED_EARLY": 75,
    "INTERRUPTED": 130,
    "TERMINATED": 143,
}


def test_the_exit_codes_are_the_contracts() -> None:
    assert {code.name: int(code) for code in ExitCode} == CODES
    assert all(code.meaning for code in ExitCode)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("UsageError", 2),
        ("ConfigError", 2),
        ("DataError", 3),
        ("OutOfMemoryError", 4),
        ("BaseModelError", 5),
        ("StorageError", 6),
        ("DivergedError", 7),
        ("VerificationError", 8),
    ],
)
def test_each_kind_of_error_has_its_exit_code(kind: str, code: int) -> None:
    assert getattr(errors, kind).exit_code == code


def test_every_error_of_ours_is_caught_as_one() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]
    assert len(kinds) >= 10
    assert all(issubclass(kind, FluxtuneError) for kind in kinds)


def test_an_error_reads_place_then_message_then_hint() -> None:
    error = StorageError("the disk is full", where="runs/mug", hint="free some space")
    assert str(error) == "runs/mug: the disk is full\n\nhint: free some space"
    assert str(StorageError("the disk is full")) == "the disk is full"


def test_a_configuration_error_shows_all_problems_at_once() -> None:
    error = ConfigError([UsageError("one", where="a.toml:1"), UsageError("two", hint="do this")])
    assert error.message == "2 problems in the configuration"
    assert str(error) == "a.toml:1: one\n\ntwo\n\nhint: do this"
    assert ConfigError([UsageError("one")]).message == "1 problem in the configuration"


def test_a_stop_carries_the_code_of_what_stopped_it() -> None:
    stop, other = Stopped("stopped", ExitCode.TERMINATED), Stopped("stopped", ExitCode.STOPPED_EARLY)
    assert (stop.exit_code, other.exit_code) == (143, 75)


def test_every_error_that_commands_and_settings_raise_says_what_to_do() -> None:
    kinds = {name for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, FluxtuneError)}
    package = Path(inspect.getfile(errors)).parent
    silent = [
        f"{file.relative_to(package)}:{node.lineno}"
        for room in ("cli", "config")
        for file in (package / room).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        # A configuration error has the hints of its problems; who stopped a command knows what to do.
        if node.func.id in kinds - {"ConfigError", "Stopped"}
        if "hint" not in {keyword.arg for keyword in node.keywords}
    ]
    assert silent == []
