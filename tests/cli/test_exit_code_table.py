"""docs/exit-codes.md: each row provoked through the real command line, and no error without a row."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

import fluxtune
from fluxtune import errors
from fluxtune.errors import ExitCode, FluxtuneError, ProcessError, Stopped

TABLE = (Path(__file__).parents[2] / "docs" / "exit-codes.md").read_text(encoding="utf-8")


class Row(NamedTuple):
    code: int
    error: str
    when: str
    example: str
    mend: str


def rows() -> list[Row]:
    lines = [line for line in TABLE.splitlines() if re.match(r"\| \d", line)]
    cells = [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in lines]
    return [Row(int(code), *others) for code, *others in cells]


def of_code(code: int, error: str) -> Row:
    return next(row for row in rows() if (row.code, row.error) == (code, error))


def test_every_code_and_every_error_has_its_row() -> None:
    assert {row.code for row in rows()} == {int(code) for code in ExitCode}
    for module in pkgutil.walk_packages(fluxtune.__path__, "fluxtune."):
        # The recipes import what only a maintainer has; no command runs them.
        if not module.name.startswith(("fluxtune.recipes", "fluxtune.__main__")):
            importlib.import_module(module.name)
    kinds, waiting = {FluxtuneError}, [FluxtuneError]
    while waiting:
        waiting = [each for kind in waiting for each in kind.__subclasses__() if each.__module__.startswith("fluxtune")]
        kinds.update(waiting)
    assert len(kinds) >= 10
    # Its code is that of what the other process failed of.
    kinds.remove(ProcessError)
    for kind in kinds - {Stopped}:
        row = of_code(kind.exit_code, kind.__name__)
        assert row.mend and row.example
    assert {row.error for row in rows()} - {""} == {kind.__name__ for kind in kinds}
    assert {row.code for row in rows() if row.error == "Stopped"} == {75, 130, 143}


def test_the_rows_say_of_each_error_what_it_says_of_itself() -> None:
    for row in rows():
        if row.error in ("", "FluxtuneError", "Stopped"):
            continue
        sentence = (inspect.getdoc(getattr(errors, row.error)) or "").replace("\n", " ").partition(";")[0]
        assert sentence.partition(".")[0] == row.when.removesuffix("."), row.error


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two pictures that nothing but the size of one is to be said of."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, side in enumerate((160, 60)):
        Image.effect_noise((side, side), 90 + 40 * index).convert("RGB").save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a zorvex in place {index}", encoding="utf-8")
    return folder


NANO = ("train", "--preset", "nano", "--set=training.device=cpu", "--set=memory.modulation=card")
WILD = (
    "previews.every=0",
    "dataset.crops=1",
    "training.learning_rate=1.0",
    "training.weight_decay=10.0",
    "training.max_grad_norm=0.0",
    "training.preservation.method=none",
    "training.divergence.action=stop",
)


@pytest.mark.parametrize(
    ("code", "error", "arguments"),
    [
        (2, "UsageError", ("train", "--stesp", "5")),
        (2, "ConfigError", ("train", "photos")),
        (3, "DataError", ("train", "nowhere", "--base", "nano", "--dry-run")),
        (4, "OutOfMemoryError", (*NANO, "--vram", "0.001", "--dry-run")),
        (5, "BaseModelError", ("sample", "x", "--base", "org/none", "--set", "model.offline=true")),
        (6, "StorageError", ("sample", "x", "--base", "nano", "--output", "/dev/null/x")),
        (
            7,
            "DivergedError",
            (*NANO, *(part for value in WILD for part in ("--set", value))),
        ),
    ],
)
def test_each_failure_gives_its_code_and_the_message_of_its_row(
    fluxtune: Callable, tmp_path: Path, code: int, error: str, arguments: tuple[str, ...]
) -> None:
    if error == "ConfigError":
        (tmp_path / "fluxtune.toml").write_text("[lora]\nrnak = 4\n", encoding="utf-8")
    outcome = fluxtune(*arguments)
    assert outcome.code == code, outcome.err
    assert of_code(code, error).example in outcome.err
    assert "\nhint: " in outcome.err


def test_errors_in_the_data_that_validate_reports_are_3_and_strict_warnings_9(fluxtune: Callable, photos: Path) -> None:
    arguments = ("validate", "photos", "--base", "nano", "--set", "dataset.resolution=128", "--strict")
    outcome = fluxtune(*arguments)
    assert outcome.code == 9, outcome.out
    assert of_code(9, "").example in outcome.out
    (photos / "1.png").write_bytes(b"damaged")
    assert fluxtune(*arguments).code == 3


def test_an_export_onto_a_disk_that_flips_a_bit_is_8(
    fluxtune: Callable, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fluxtune.exporting.dataset as exporting

    def copied_with_a_flipped_bit(source: Path, target: Path) -> None:
        content = bytearray(Path(source).read_bytes())
        content[len(content) // 2] ^= 1
        Path(target).write_bytes(content)

    monkeypatch.setattr(exporting.shutil, "copyfile", copied_with_a_flipped_bit)
    outcome = fluxtune("export", "dataset", "photos", "--format", "kohya", "--output", "copy")
    assert outcome.code == 8, outcome.err
    assert of_code(8, "VerificationError").example in outcome.err
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_give_their_codes(
    fluxtune: Callable, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    monkeypatch.setattr("fluxtune.cli.presets.listing", lambda: os.kill(os.getpid(), number))
    outcome = fluxtune("presets")
    assert (outcome.code, outcome.out) == (code, "")
    assert of_code(code, "Stopped").example in outcome.err


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (ZeroDivisionError("division by zero"), 1, "error: unexpected ZeroDivisionError: division by zero\n"),
        (RecursionError("maximum recursion depth exceeded"), 1, "error: unexpected RecursionError: "),
        (UnicodeEncodeError("ascii", "é", 0, 1, "no"), 1, "error: unexpected UnicodeEncodeError: "),
        (FileNotFoundError(2, "No such file or directory", "x"), 1, "error: unexpected FileNotFoundError: "),
        (AssertionError(), 1, "error: unexpected AssertionError: "),
        (MemoryError(), 4, "error: there is not enough system memory\n"),
        (PermissionError(13, "Permission denied", "runs/mug"), 6, "error: runs/mug: permission denied\n"),
        (OSError(30, "Read-only file system", "runs"), 6, "error: runs: read-only file system\n"),
        (OSError(28, "No space left on device"), 6, "error: no space left on device\n"),
        (OSError(24, "Too many open files", b"a\n\xff"), 6, "error: a\\n\\udcff: too many open files\n"),
        (BrokenPipeError(32, "Broken pipe"), 1, "error: unexpected BrokenPipeError: "),
        (KeyboardInterrupt(), 130, "stopped: interrupted\n"),
        (EOFError(), 130, "stopped: interrupted\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_whatever_a_command_raises_has_a_code_and_a_message(
    fluxtune: Callable, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, told: str, tmp_path: Path
) -> None:
    def fail() -> None:
        raise raised

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("fluxtune.cli.presets.listing", fail)
    outcome = fluxtune("presets")
    assert (outcome.code, outcome.out.strip()) == (code, "")
    assert told in outcome.err
    assert "Traceback" not in outcome.err
    assert len(list(tmp_path.glob("fluxtune-error-*.txt"))) == (code == 1)


def test_a_bug_whose_log_cannot_be_written_is_told_with_its_place(
    fluxtune: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    monkeypatch.setattr("fluxtune.cli.presets.listing", lambda: 1 / 0)
    outcome = fluxtune("presets")
    assert outcome.code == 1
    assert outcome.err.startswith(f"error: {__file__}:")
    assert "please report it; no log of it can be written (No such file or directory)" in outcome.err


def test_a_library_that_ends_the_process_keeps_its_own_code(
    fluxtune: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave() -> None:
        raise SystemExit(3)

    monkeypatch.setattr("fluxtune.cli.presets.listing", leave)
    with pytest.raises(SystemExit):
        fluxtune("presets")
