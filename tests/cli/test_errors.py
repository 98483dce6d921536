from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fluxtune import errors
from fluxtune.cli import app


def test_all_mistakes_of_a_configuration_are_shown_at_once(fluxtune: Callable, tmp_path: Path) -> None:
    (tmp_path / "fluxtune.toml").write_text(
        "[training]\nstps = 500\nlearning_rate = '1e-4'\n\n[memory]\nbase_precision = 'int4'\n", encoding="utf-8"
    )
    outcome = fluxtune("train", "photos", "--preset", "24g", "--rank", "many", "--set", "lora")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == (
        'error: --preset: there is no preset "24g": wanted one of nano, 6gb, 8gb, 12gb, 16gb, 24gb, 24gb-bf16, 48gb, '
        "80gb, or the path of a .toml file\n"
        "\n"
        "hint: did you mean 24gb?\n"
        "\n"
        'error: --set: "lora" sets nothing: wanted section.key=value\n'
        "\n"
        "hint: for instance --set training.steps=500\n"
        "\n"
        "error: fluxtune.toml:2: unknown setting training.stps\n"
        "\n"
        "hint: did you mean training.steps?\n"
        "\n"
        'error: fluxtune.toml:3: training.learning_rate is "1e-4": wanted a number above 0 and at most 1\n'
        "\n"
        "hint: write it without quotes: learning_rate = 1e-4\n"
        "\n"
        'error: fluxtune.toml:6: memory.base_precision is "int4": wanted one of "fp32", "bf16", "int8", '
        '"int8-weights", "fp8", "nf4", "auto"\n'
        "\n"
        'hint: did you mean "int8"?\n'
        "\n"
        'error: --rank: lora.rank is "many": wanted a whole number from 1 to 1,024\n'
        "\n"
        "hint: Rank of the adapter: its capacity, and the size of its file. The default is 16.\n"
    )


def test_with_json_the_mistakes_are_one_error_record(fluxtune: Callable) -> None:
    outcome = fluxtune("train", "photos", "--json", "--steps", "0", "--seed", "-1")
    (record,) = outcome.records()
    assert (outcome.code, outcome.err) == (2, "")
    assert (record["schema"], record["event"], record["code"]) == (1, "error", 2)
    assert record["message"] == "2 problems in the configuration"
    assert [problem["where"] for problem in record["problems"]] == ["--steps", "--seed"]


def test_with_json_a_single_mistake_is_the_record_itself(fluxtune: Callable) -> None:
    (record,) = fluxtune("train", "photos", "--json", "--steps", "0").records()
    assert record["message"] == "training.steps is 0: wanted a whole number from 1 to 10,000,000"
    assert (record["where"], record["hint"][:15]) == ("--steps", "Optimizer steps")


@pytest.mark.parametrize(
    ("flag", "key"),
    [
        ("--base", "model.base"),
        ("--trigger", "dataset.trigger"),
        ("--class-word", "dataset.class_word"),
        ("--resolution", "dataset.resolution"),
        ("--steps", "training.steps"),
        ("--rank", "lora.rank"),
        ("--learning-rate", "training.learning_rate"),
        ("--batch-size", "training.batch_size"),
        ("--seed", "training.seed"),
        ("--init-from", "lora.init_from"),
    ],
)
def test_a_flag_with_an_empty_value_is_refused(fluxtune: Callable, flag: str, key: str) -> None:
    outcome = fluxtune("train", "photos", flag, "")
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {flag}: {key} ")


def test_an_empty_folder_is_not_the_working_folder(fluxtune: Callable) -> None:
    outcome = fluxtune("train", "", "--preset", "24gb")
    assert outcome.code == 2
    assert outcome.err.startswith('error: FOLDER: dataset.folders.path is "": wanted a path\n')


def test_a_home_folder_of_nobody_is_no_bug(fluxtune: Callable) -> None:
    assert fluxtune("train", "~nouser/p", "--explain").code == 0
    assert fluxtune("train", "photos", "--preset", "~nouser/x.toml").code == 2


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_preset_that_leads_nowhere_does_not_break_the_list(fluxtune: Callable, tmp_path: Path) -> None:
    folder = Path(os.environ["FLUXTUNE_CONFIG"]) / "presets"
    folder.mkdir()
    (folder / "gone.toml").symlink_to(tmp_path / "gone.toml")
    outcome = fluxtune("presets")
    assert outcome.code == 0
    assert "24gb" in outcome.out


def test_training_without_pictures_says_how_to_give_some(fluxtune: Callable) -> None:
    outcome = fluxtune("train", "--preset", "24gb")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == (
        "error: fluxtune train: no pictures to learn from: wanted a FOLDER, or [[dataset.folders]] in your settings\n"
        "\n"
        "hint: fluxtune train photos --preset 24gb; or, to see it work on a demo set, fluxtune train --preset nano\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "--stesp", "5"],
            "error: fluxtune train: no such option: --stesp\n\nhint: did you mean --seed or --set or --steps?\n",
        ),
        (
            ["trian"],
            "error: fluxtune: no such command 'trian'. Did you mean 'train'?\n\n"
            "hint: `fluxtune --help` shows how it is used\n",
        ),
        (
            ["train", "a", "b"],
            "error: fluxtune train: got unexpected extra argument(s) (b)\n\n"
            "hint: `fluxtune train --help` shows how it is used\n",
        ),
        (
            ["train", "--steps"],
            "error: fluxtune: option '--steps' requires an argument\n\nhint: `fluxtune --help` shows how it is used\n",
        ),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(fluxtune: Callable, arguments: list[str], message: str) -> None:
    outcome = fluxtune(*arguments)
    assert (outcome.code, outcome.out, outcome.err) == (2, "", message)
    (record,) = fluxtune(*arguments, "--json").records()
    assert (record["event"], record["code"]) == ("error", 2)


def test_fluxtune_alone_shows_its_help_and_is_a_usage_error(fluxtune: Callable) -> None:
    outcome, asked = fluxtune(), fluxtune("--help")
    assert (outcome.code, asked.code) == (2, 0)
    assert outcome.out == asked.out
    assert "fluxtune train --preset nano" in asked.out


def test_a_failure_has_the_exit_code_of_its_kind(fluxtune: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise errors.BaseModelError("gated", where="org/model", hint="accept the licence")

    monkeypatch.setattr(app, "app", _app_with(fail))
    outcome = fluxtune("fail")
    assert (outcome.code, outcome.out) == (5, "")
    assert outcome.err == "error: org/model: gated\n\nhint: accept the licence\n"


def test_a_run_that_was_stopped_is_no_error(fluxtune: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise errors.Stopped("stopped after step 5", errors.ExitCode.INTERRUPTED, hint="go on")

    monkeypatch.setattr(app, "app", _app_with(stop))
    outcome = fluxtune("stop")
    assert (outcome.code, outcome.err) == (130, "stopped: stopped after step 5\n\nhint: go on\n")


def test_ctrl_c_outside_of_training_is_130(fluxtune: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def press() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "app", _app_with(press))
    assert fluxtune("press") == (130, "", "stopped: interrupted\n")
    (record,) = fluxtune("press", "--json").records()
    assert (record["event"], record["code"]) == ("error", 130)


def test_a_bug_names_a_file_with_the_traceback(
    fluxtune: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def crash() -> None:
        raise ZeroDivisionError("a \x1b[31mbug")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(app, "app", _app_with(crash))
    outcome = fluxtune("crash")
    (log,) = tmp_path.glob("fluxtune-error-*.txt")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == (
        "error: unexpected ZeroDivisionError: a \\x1b[31mbug\n\n"
        f"hint: this is a bug in fluxtune: please report it together with {log}\n"
    )
    assert 'raise ZeroDivisionError("a' in log.read_text(encoding="utf-8")


def test_a_reader_that_leaves_early_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "fluxtune", "presets"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert done.returncode == 0
    assert "Error" not in done.stderr


def test_words_that_the_stream_cannot_encode_are_escaped(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fluxtune", "train", "--set", "dataset.trigger=żółw", "--explain"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b'trigger = "\\u017c\\xf3\\u0142w"' in done.stdout


def _app_with(command: Callable[[], None]) -> object:
    """A Typer app with one command that fails as told, beside the real callback."""
    import typer

    def failing(as_json: bool = typer.Option(False, "--json")) -> None:
        command()

    made = typer.Typer(callback=app._root, rich_markup_mode=None)
    made.command(command.__name__)(failing)
    return made
