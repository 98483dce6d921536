"""Files that are broken, hostile or somebody else's: one message each, with file and line, and exit code 2."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tomli
import yaml
from run_examples import AI_TOOLKIT, DIFFUSERS, ONETRAINER, SD_SCRIPTS, SIMPLETUNER

from fluxtune.cli.app import main
from fluxtune.errors import UsageError
from fluxtune.handover.command_lines import read_script
from fluxtune.handover.taking_over import take_over

JOB = "config:\n  name: a\n  process:\n    - type: sd_trainer\n      model: {is_flux: true, name_or_path: x/y}\n"
DATA = "      datasets:\n        - folder_path: photos\n"
KOHYA = 'network_module = "networks.lora_flux"\npretrained_model_name_or_path = "a.safetensors"\n'
SIMPLE = '{\n"model_family": "flux",\n"model_type": "lora",\n'
BOMB = "      a: &a {x: 1, y: 2, z: 3, u: 4, v: 5, w: 6, p: 7, q: 8, r: 9}\n" + "".join(
    f"      {chr(98 + n)}: &{chr(98 + n)} {{{', '.join(f'{key}: *{chr(97 + n)}' for key in 'xyzuvwpqr')}}}\n"
    for n in range(9)
)
LISTS = "      a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"      {chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
)

BAD: dict[str, tuple[str, str, str]] = {
    "an indentation": ("job.yaml", "config:\n  name: a\n process: []\n", "job.yaml:3: not valid YAML"),
    "a tag that would run something": (
        "job.yaml",
        "config: !!python/object/apply:os.system ['true']\n",
        "job.yaml:1: ",
    ),
    "tables of tables without end": ("job.yaml", f"{JOB}{DATA}{BOMB}", "job.yaml: these are more than 5,000 settings"),
    "a key that is set twice": (
        "job.yaml",
        f"{JOB}{DATA}      train:\n        lr: 1\n        lr: 2\n",
        "job.yaml:10: ",
    ),
    "a word for a number": (
        "job.yaml",
        f"{JOB}{DATA}      train:\n        steps: many\n",
        "job.yaml:9: train.steps is",
    ),
    "a list for a number": (
        "job.yaml",
        f"{JOB}{DATA}      network:\n        linear: [1]\n",
        "job.yaml:9: network.linear",
    ),
    "a number out of range": (
        "job.yaml",
        f"{JOB}{DATA}      network:\n        linear: 4096\n",
        "job.yaml:9: lora.rank is",
    ),
    "no number at all": ("job.yaml", f"{JOB}{DATA}      train:\n        lr: .nan\n", "job.yaml:9: train.lr is nan"),
    "an optimizer's argument": ("a.toml", f'{KOHYA}optimizer_args = ["weight_decay=x"]\n', "a.toml:3: "),
    "a process that is no table": ("job.yaml", "config:\n  process: [5]\n", "job.yaml:2: the job has no process"),
    "prompts that are no list": (
        "job.yaml",
        f"{JOB}{DATA}      sample:\n        prompts: 5\n",
        "job.yaml:9: sample.prompts",
    ),
    "a half of a letter": ("c.json", f'{SIMPLE}"tracker_run_name": "\\ud800"\n}}', "c.json:4: tracker_run_name"),
    "TOML that is none": ("a.toml", f"{KOHYA}network_dim 4\n", "a.toml:3: not valid TOML"),
    "JSON that is none": ("c.json", f'{SIMPLE}"lora_rank": 4,\n}}', "c.json:"),
    "JSON without end": ("c.json", '{"model_family": ' + "[" * 100_000, "c.json: not valid JSON"),
    "a sampling that nobody has": ("a.toml", f'{KOHYA}timestep_sampling = "often"\n', "a.toml:3: timestep_sampling is"),
    "another model": ("c.json", '{\n"model_type": "lora",\n"model_family": "sdxl"\n}', "c.json:3: model_family is"),
    "a LoRA of Stable Diffusion": ("a.toml", 'network_module = "networks.lora"\n', "a.toml:1: network_module is"),
    "another script": ("a.sh", "python sdxl_train_network.py --network_module=networks.lora\n", "a.sh:1: "),
    "a quote without end": (
        "a.sh",
        'python flux_train_network.py \\\n --output_name "a\n',
        "a.sh:2: a quote is opened",
    ),
    "text": ("a.txt", "Dear diary,\n", "a.txt: this is neither settings nor a command"),
    "nothing": ("a.json", "", "a.json:2: not valid JSON"),
    "another program's settings": (
        "a.json",
        '{"LoRA_type": "Flux1", "network_dim": 4}',
        "a.json: these are settings of",
    ),
    "nobody's settings": ("a.json", '{"colour": "red"}', "a.json: this is no file of settings of a trainer"),
    "a data set": ("a.toml", "[[datasets]]\nresolution = 512\n", "a.toml: this describes a data set, and no run"),
    "our own": ("a.toml", "[training]\nsteps = 5\n", "a.toml: these are settings of fluxtune"),
    "bytes that are no text": ("a.yaml", "\udcff\udcfe", "a.yaml:1: byte 0xff is no UTF-8"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_file_is_one_message_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    name, text, message = BAD[what]
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape" if what.startswith("bytes") else "strict"))
    assert main(["import", "config", name, "--output", "ours.toml"]) == 2
    told = capsys.readouterr().err
    assert f"error: {message}" in told
    assert "hint: " in told
    assert "Traceback" not in told
    assert not (tmp_path / "ours.toml").exists()


def test_what_multiplies_without_end_is_passed_over(tmp_path: Path) -> None:
    loop = "      loop: &loop\n        more: *loop\n"
    (tmp_path / "job.yaml").write_text(f"{JOB}{DATA}{LISTS}{loop}", encoding="utf-8")
    told = [remark.message for remark in take_over(tmp_path / "job.yaml", "job.yaml").remarks]
    assert "j = ...: it has no counterpart here, and is not taken over" in told


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    text = f"{JOB}{DATA}      train:\n        steps: many\n        lr: fast\n        batch_size: 1.5\n"
    (tmp_path / "job.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        take_over(tmp_path / "job.yaml", "job.yaml")
    assert [f"job.yaml:{line}: " in str(caught.value) for line in (9, 10, 11)] == [True] * 3


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "huge"])
def test_what_is_no_file_is_told(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "job.yaml"
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        import os

        os.mkfifo(file)
    elif kind == "huge":
        file.write_text("x: 1\n" * 2**19, encoding="utf-8")
    with pytest.raises(UsageError, match=r"no such file|a folder|a pipe|too large"):
        take_over(file, "job.yaml")


VALUES = (None, True, -1, 10**30, 1.5, float("inf"), "x", "", [], [1], [{}], {"a": {"b": []}}, "1e-4", ["a=b"])


def every_settings() -> list[dict[str, Any]]:
    """The settings of each trainer as one table, or a job with one."""
    script = read_script(DIFFUSERS, "train.sh").options
    sections = tomli.loads(SD_SCRIPTS)
    kohya = {key: value for section in sections.values() for key, value in section.items()}
    return [SIMPLETUNER, ONETRAINER, script, kohya, yaml.safe_load(AI_TOOLKIT)["config"]["process"][0]]


@pytest.mark.parametrize("number", range(5))
def test_any_value_of_any_key_is_a_message_and_no_crash(tmp_path: Path, number: int) -> None:
    settings = every_settings()[number]
    file = tmp_path / "settings.json"
    tables = {key: value for key, value in settings.items() if isinstance(value, dict)}
    places = [(key,) for key in settings] + [(table, key) for table in tables for key in tables[table]]
    for turn, place in enumerate(places):
        for value in VALUES[turn % 3 :: 3]:
            changed = json.loads(json.dumps(settings))
            table = changed if len(place) == 1 else changed[place[0]]
            table[place[-1]] = value
            whole = {"config": {"name": "a", "process": [changed]}} if number == 4 else changed
            file.write_text(json.dumps(whole), encoding="utf-8")
            with suppress(UsageError):
                take_over(file, "settings.json")
