from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from interruption import interrupted, interrupted_here
from typer.main import get_command

from fluxtune.cli.app import app
from fluxtune.cli.explain import explain
from fluxtune.cli.train import _free_run_folder
from fluxtune.config.layers import Resolved, resolve, to_toml
from fluxtune.config.settings import defaults, settings
from fluxtune.runs import Run
from fluxtune.training import encode

QUICK = [
    "--set=training.precision=fp32",
    "--set=memory.base_precision=fp32",
    "--set=memory.text_precision=fp32",
    "--set=memory.recompute=none",
    "--set=training.optimizer=adamw",
    "--set=training.device=cpu",
    "--set=dataset.resolution=64",
    "--set=previews.every=0",
]


def settings_of(folder: Path, *sets: str, preset: str | None = None) -> Resolved:
    return resolve(preset=preset, config_file=None, flags={}, sets=list(sets), working_folder=folder)


def run_folder(folder: Path, *sets: str) -> Path:
    """A run that has done nothing yet."""
    config = to_toml(settings_of(folder, "lora.rank=4", *sets).config)
    return Run.create(folder / "run", config, {"lora.rank": "mine.toml:3"}, {}).folder


def test_libraries_are_set_aside_once_nothing_refuses_the_run_and_before_a_model_is_loaded(
    fluxtune: Callable, tiny_flux: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    load_vae = encode.load_vae
    monkeypatch.setattr("fluxtune.flux.libraries.set_libraries_aside", lambda: happened.append("set aside"))
    monkeypatch.setattr(encode, "load_vae", lambda *given: (happened.append("VAE"), load_vae(*given))[1])
    assert fluxtune("train", "nowhere", "--base", str(tiny_flux), *QUICK).code == 3
    assert happened == []
    assert fluxtune("train", str(pictures), "--base", str(tiny_flux), "--steps", "1", *QUICK).code == 0
    assert happened == ["set aside", "VAE"]


def test_explain_shows_every_setting_with_value_origin_and_help(fluxtune: Callable) -> None:
    outcome = fluxtune("train", "--preset", "24gb", "--steps", "9", "--explain")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert any(line.startswith("steps = 9 ") and line.endswith("# --steps") for line in lines)
    assert any(line.startswith('base_precision = "int8" ') and "# preset 24gb (24gb.toml:" in line for line in lines)
    for setting in settings().values():
        assert setting.in_row or f"# {setting.help}" in lines


def test_explain_is_toml_that_reads_back_as_the_same_settings(fluxtune: Callable, tmp_path: Path) -> None:
    outcome = fluxtune("train", "photos [1]", "--preset", "nano", "--trigger", 'zor"vex', "--explain")
    (tmp_path / "fluxtune.toml").write_text(outcome.out, encoding="utf-8")
    made = settings_of(tmp_path).config
    assert made.dataset.trigger == 'zor"vex'
    assert made.dataset.folders[0].path == str(tmp_path / "photos [1]")
    assert (
        made
        == settings_of(
            tmp_path, 'dataset.trigger="zor\\"vex"', 'dataset.folders=[{path = "photos [1]"}]', preset="nano"
        ).config
    )


def test_explain_with_json_is_one_result_record(fluxtune: Callable) -> None:
    (record,) = fluxtune("train", "--explain", "--json", "--rank", "4").records()
    assert (record["event"], record["command"]) == ("result", "explain")
    rows = {row["key"]: row for row in record["data"]["settings"]}
    assert set(rows) == set(defaults())
    assert (rows["lora.rank"]["value"], rows["lora.rank"]["origin"], rows["lora.rank"]["default"]) == (4, "--rank", 16)


def test_a_text_flag_stays_text_and_a_number_flag_is_a_number(tmp_path: Path, fluxtune: Callable) -> None:
    outcome = fluxtune("train", "--explain", "--json", "--trigger", "007", "--lr", "2e-4", "--resolution", "512")
    rows = {row["key"]: row["value"] for row in outcome.records()[0]["data"]["settings"]}
    assert rows["dataset.trigger"] == "007"
    assert rows["training.learning_rate"] == 2e-4
    assert rows["dataset.resolution"] == [512]


def test_help_of_the_flags_is_the_help_of_the_settings(fluxtune: Callable) -> None:
    text = " ".join(fluxtune("train", "--help").out.split())
    for key in ("dataset.resolution", "training.steps", "lora.rank", "lora.init_from", "training.seed"):
        assert settings()[key].help in text
    assert "Default: [1024]." in text


@pytest.mark.parametrize(
    ("sets", "preset", "name"),
    [
        (["dataset.folders=[{path = 'my photos'}]"], "24gb", "my photos"),
        (["dataset.folders=[{path = 'photos'}]", "name=mug"], "24gb", "mug"),
        ([], "nano", "nano"),
        (["dataset.folders=[{path = '.'}]"], None, None),
    ],
)
def test_the_run_is_named_after_the_name_the_pictures_or_the_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sets: list[str], preset: str | None, name: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    config = settings_of(tmp_path, *sets, preset=preset).config
    assert _free_run_folder(config, preset) == Path("runs") / (name or tmp_path.name)


def test_a_run_of_that_name_is_left_alone_and_the_next_number_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = settings_of(tmp_path, preset="nano").config
    for taken, free in (("nano", "nano-2"), ("nano-2", "nano-3")):
        (tmp_path / "runs" / taken).mkdir(parents=True)
        assert _free_run_folder(config, "nano") == Path("runs") / free


def test_a_run_is_named_after_the_folder_that_was_given_and_not_after_those_it_describes(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "dataset.toml").write_text('[[dataset.folders]]\npath = "part"\n', encoding="utf-8")
    rows: dict[str, tuple[str, object]] = {"dataset.folders": ("FOLDER", [{"path": "mine"}])}
    resolved = resolve(preset=None, config_file=None, flags=rows, sets=[], working_folder=tmp_path)
    assert _free_run_folder(resolved.config, None, str(tmp_path / "mine")) == Path("runs") / "mine"


def test_resume_refuses_another_output(fluxtune: Callable) -> None:
    outcome = fluxtune("train", "--resume", "runs/x", "--output", "y")
    assert (outcome.code, outcome.err.splitlines()[0]) == (
        2,
        "error: --output: --resume writes into the run's own folder",
    )


def refusal(fluxtune: Callable, *arguments: str) -> list[str]:
    outcome = fluxtune("train", "--resume", "run", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    return outcome.err.splitlines()


def test_what_may_not_change_is_shown_as_a_diff_with_the_place_of_each(fluxtune: Callable, tmp_path: Path) -> None:
    run_folder(tmp_path)
    (tmp_path / "new.toml").write_text("[training]\nbatch_size = 3\n", encoding="utf-8")
    given = ["--rank", "8", "--set", "training . seed = 1", "--config", "new.toml", "--steps", "9"]
    assert refusal(fluxtune, *given) == [
        "error: run: 3 settings cannot change while a run goes on:",
        "  lora.rank was 4, is now 8 (--rank)",
        "  training.batch_size was 1, is now 3 (new.toml:2)",
        "  training.seed was 42, is now 1 (--set)",
        "",
        "hint: leave them out, or start a new run without --resume",
    ]


def test_a_refusal_loads_nothing(fluxtune: Callable, tmp_path: Path) -> None:
    run_folder(tmp_path)
    code = (
        "import sys; from fluxtune.cli.app import main; code = main(['train', '--resume', 'run', '--rank', '8']); "
        "print(code, [name for name in ('torch', 'numpy', 'diffusers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "2 []\n"


def test_what_is_given_again_as_it_was_changes_nothing(fluxtune: Callable, tmp_path: Path) -> None:
    run_folder(tmp_path)
    (tmp_path / "fluxtune.toml").write_text("[lora]\nrank = 64\n", encoding="utf-8")  # not read for a run
    (record,) = fluxtune("train", "--resume", "run", "--rank", "4", "--explain", "--json").records()
    rows = {row["key"]: row for row in record["data"]["settings"]}
    assert (rows["lora.rank"]["value"], rows["lora.rank"]["origin"]) == (4, "mine.toml:3")


def test_a_preset_on_resume_changes_what_it_sets(fluxtune: Callable, tmp_path: Path) -> None:
    run_folder(tmp_path)
    (record,) = fluxtune("train", "--resume", "run", "--preset", "16gb", "--explain", "--json").records()
    rows = {row["key"]: row for row in record["data"]["settings"]}
    assert rows["memory.base_precision"]["value"] == "int8"
    assert rows["memory.base_precision"]["origin"].startswith("preset 16gb")
    assert rows["lora.rank"]["value"] == 4


def test_settings_of_a_resumed_run_may_change_through_flags_and_set(fluxtune: Callable, tmp_path: Path) -> None:
    run_folder(tmp_path)
    sets = ["--set", "training.steps=9", "--lr", "2e-4", "--set", "previews.every=3"]
    (record,) = fluxtune("train", "--resume", "run", *sets, "--explain", "--json").records()
    rows = {row["key"]: row for row in record["data"]["settings"]}
    assert (rows["training.steps"]["value"], rows["training.learning_rate"]["value"]) == (9, 2e-4)
    assert (rows["training.steps"]["origin"], rows["lora.rank"]["origin"]) == ("--set", "mine.toml:3")


def test_pictures_that_moved_are_named_again(fluxtune: Callable, tmp_path: Path) -> None:
    run = run_folder(tmp_path, "dataset.folders=[{path = 'photos', repeats = 1}]")
    outcome = fluxtune("train", "--resume", "run")
    assert outcome.code == 3
    assert "the pictures of this run are not there any more" in outcome.err
    assert f"hint: put them back; or say where they are now: fluxtune train FOLDER --resume {run.name}" in outcome.err
    (tmp_path / "moved").mkdir()
    (record,) = fluxtune("train", "moved", "--resume", "run", "--explain", "--json").records()
    rows = {row["key"]: row for row in record["data"]["settings"]}
    assert rows["dataset.folders"]["value"][0]["path"] == str(tmp_path / "moved")


@pytest.mark.parametrize("content", ['{"lora.rank": "mi', "[1]", '"text"'])
def test_a_damaged_record_of_origins_is_a_storage_error(fluxtune: Callable, tmp_path: Path, content: str) -> None:
    run = run_folder(tmp_path)
    (run / "origins.json").write_text(content, encoding="utf-8")
    outcome = fluxtune("train", "--resume", "run", "--explain")
    assert outcome.code == 6
    assert outcome.err.startswith(f"error: {Path('run', 'origins.json')}: damaged record of where settings came from")
    assert "hint: remove the file" in outcome.err


def test_resume_of_something_else_says_so(fluxtune: Callable, tmp_path: Path) -> None:
    outcome = fluxtune("train", "--resume", "nowhere")
    assert (outcome.code, outcome.err.splitlines()[0]) == (
        2,
        "error: nowhere: there is no such folder",
    )
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000002"
    checkpoint.mkdir(parents=True)
    (tmp_path / "run" / "config.toml").touch()
    outcome = fluxtune("train", "--resume", str(checkpoint))
    assert (outcome.code, outcome.err.splitlines()[0]) == (
        2,
        f"error: {checkpoint}: not a run folder: it has no config.toml",
    )
    assert f"hint: give {tmp_path / 'run'}, or --resume latest" in outcome.err


def test_a_run_that_is_not_there_has_one_exit_code_however_it_is_named(fluxtune: Callable, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    commands = [
        ("train", "--resume", "latest"),
        ("train", "--resume", "nowhere"),
        ("train", "--resume", "empty"),
        ("sample", "a hill", "--lora", "nowhere"),
        ("sample", "a hill", "--lora", "empty"),
        ("export", "empty"),
        ("export", "inspect", "empty"),
        ("export", "card", "empty"),
        ("train", "empty", "--base", "nano", "--init-from", "nowhere"),
        ("train", "empty", "--base", "nano", "--init-from", "empty"),
    ]
    assert [fluxtune(*command).code for command in commands] == [2] * len(commands)


def test_a_run_trains_and_prints_only_the_path_of_its_lora(
    fluxtune: Callable, tiny_flux: Path, pictures: Path, tmp_path: Path
) -> None:
    outcome = fluxtune("train", str(pictures), "--base", str(tiny_flux), "--steps", "2", *QUICK)
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{Path('runs/pictures/pictures.safetensors')}\n"
    assert (tmp_path / outcome.out.strip()).is_file()
    assert "step 2/2" in outcome.err
    origins = json.loads((tmp_path / "runs/pictures/origins.json").read_text(encoding="utf-8"))
    assert (origins["training.steps"], origins["dataset.folders"]) == ("--steps", "FOLDER")

    resumed = fluxtune("train", "--resume", "latest", "--steps", "3", "--json")
    assert resumed.code == 0, resumed.err
    records = resumed.records()
    assert [record["step"] for record in records if record["event"] == "step"] == [3]
    assert (records[-1]["event"], records[-1]["data"]["steps"]) == ("result", 3)
    origins = json.loads((tmp_path / "runs/pictures/origins.json").read_text(encoding="utf-8"))
    assert (origins["training.steps"], origins["dataset.folders"]) == ("--steps", "FOLDER")


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
def test_ctrl_c_saves_and_says_how_to_go_on(tiny_flux: Path, pictures: Path, tmp_path: Path) -> None:
    arguments = ["train", str(pictures), "--base", str(tiny_flux), "-o", "run", *QUICK, "--steps", "100000", "--json"]
    code, out, err = interrupted(arguments, tmp_path, lambda event: event["event"] == "step")
    assert code == 130
    assert "stopping after this step" in err
    last = json.loads(out.splitlines()[-1])
    assert (last["event"], last["code"], last["hint"]) == ("error", 130, "go on with: fluxtune train --resume run")
    assert list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
def test_the_command_that_is_told_goes_on_with_a_run_in_spite_of_errors_that_were_accepted(
    fluxtune: Callable, tiny_flux: Path, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "1.png").write_bytes(b"damaged")
    arguments = ["train", str(pictures), "--base", str(tiny_flux), "-o", "run", *QUICK, "--accept", "data", "--json"]
    _, out = interrupted_here(arguments, tmp_path, lambda event: event["event"] == "step")
    told = json.loads(out.splitlines()[-1])["hint"].partition("go on with: fluxtune ")[2]
    done = Run.open(tmp_path / "run").state.step
    outcome = fluxtune(*shlex.split(told), "--steps", str(done + 1))
    assert outcome.code == 0, outcome.err


def test_an_existing_output_is_never_written_over(
    fluxtune: Callable, tiny_flux: Path, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    outcome = fluxtune("train", str(pictures), "--base", str(tiny_flux), "--output", "mine", *QUICK)
    assert outcome.code == 6
    assert outcome.err.endswith("\n\nhint: choose another --output\n")


def test_settings_that_are_unset_are_shown_as_comments(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    explain(settings_of(tmp_path), as_json=False)
    assert "# alpha is unset" in capsys.readouterr().out


def examples(fluxtune: Callable, *command: str) -> list[list[str]]:
    """The arguments of each example in a command's help."""
    lines = [line.strip() for line in fluxtune(*command, "--help").out.splitlines()]
    return [shlex.split(line.split("   ")[0])[1:] for line in lines if line.startswith("fluxtune ")]


def test_the_examples_of_the_help_are_understood(fluxtune: Callable) -> None:
    found = [each for name in ([], ["train"]) for each in examples(fluxtune, *name) if each[0] == "train"]
    assert len(found) >= 5
    for arguments in found:
        outcome = fluxtune(*arguments, "--explain")
        # Without a run to go on with, `--resume latest` is understood and finds none.
        understood = "no run folders here" in outcome.err if "--resume" in arguments else outcome.code == 0
        assert understood, arguments


@pytest.mark.parametrize("name", ["train", "sample", "presets"])
def test_the_examples_of_every_help_name_real_options(fluxtune: Callable, name: str) -> None:
    found = examples(fluxtune, name)
    assert found
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for command, *arguments in found:
        # Reads the arguments as the command would, down to their types, and runs nothing.
        commands[command].make_context(command, arguments)
