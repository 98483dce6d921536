"""The trainers' own examples through our import, and our exports through their parsers.

Opt-in: ``FLUXTUNE_PEERS`` names a folder with checkouts, called ai-toolkit, SimpleTuner, sd-scripts, OneTrainer and
diffusers.
Of scripts that cannot be imported without a graphics card's libraries, the parts that read settings run by themselves.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
import tomli
import yaml
from test_handing_over import run_of

from fluxtune.errors import UsageError
from fluxtune.events import ignore
from fluxtune.handover.command_lines import read_script
from fluxtune.handover.handing_over import hand_over
from fluxtune.handover.taking_over import take_over
from fluxtune.handover.targets import Target

PEERS = Path(os.environ.get("FLUXTUNE_PEERS", "nowhere"))
pytestmark = pytest.mark.skipif(not PEERS.is_dir(), reason="FLUXTUNE_PEERS names no folder of checkouts")

TITLES = {"ai-toolkit": "ai-toolkit", "simpletuner": "SimpleTuner", "onetrainer": "OneTrainer"}


def outcomes(files: list[Path]) -> tuple[list[Path], dict[Path, str]]:
    """Which files are taken over, and why the others are refused."""
    taken, refused = [], {}
    for file in files:
        try:
            take_over(file, file.name)
            taken.append(file)
        except UsageError as error:
            refused[file] = str(error)
    return taken, refused


@pytest.mark.parametrize(
    ("trainer", "pattern", "flux", "least"),
    [
        ("ai-toolkit", "config/examples/**/*.y*ml", r"flux(_schnell)?_24gb", 4),
        ("simpletuner", "simpletuner/examples/*/config.json", r"examples/flux\.peft-lora", 2),
        ("onetrainer", "training_presets/**/*.json", r"Flux Dev\.1/#flux LoRA", 1),
    ],
)
def test_every_example_for_flux1_is_taken_over_and_the_others_refused(
    trainer: str, pattern: str, flux: str, least: int
) -> None:
    root = PEERS / TITLES[trainer]
    files = sorted(root.glob(pattern))
    wanted = {file for file in files if re.search(flux, str(file))}
    assert len(wanted) >= least
    taken, refused = outcomes(files)
    assert set(taken) == wanted
    assert all("\n\nhint: " in message for message in refused.values())


def test_simpletuners_example_of_settings_is_taken_over() -> None:
    taken = take_over(PEERS / "SimpleTuner" / "config" / "config.json.example", "config.json.example")
    assert taken.trainer == "SimpleTuner"
    assert taken.config.training.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("page", "script"),
    [
        ("diffusers/examples/dreambooth/README_flux.md", "train_dreambooth_lora_flux.py"),
        ("sd-scripts/docs/flux_train_network.md", "flux_train_network.py"),
    ],
)
def test_the_commands_of_the_documentation_are_taken_over(tmp_path: Path, page: str, script: str) -> None:
    text = (PEERS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:bash|shell)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    blocks = [block for block in blocks if f"{script} \\" in block and "chroma" not in block and "..." not in block]
    assert blocks
    for number, block in enumerate(blocks):
        file = tmp_path / f"{number}.sh"
        file.write_text(block, encoding="utf-8")
        assert take_over(file, file.name).config.lora.rank >= 4


def exported(tmp_path: Path, target: Target) -> list[Path]:
    """The settings of every preset, and of a run in which much is not at its default."""
    changes: dict[str, Any] = {
        "training__warmup": 5,
        "training__ema_decay": 0.98,
        "lora__targets": "attention+mlp",
        "training__schedule": "cosine",
        "previews__prompts": ["a zorvex", "a boat"],
        "dataset__resolution": [512, 768],
        "tracking__trackers": ["tensorboard"],
        "training__accumulation": 2,
    }
    runs = [run_of(tmp_path, preset) for preset in ("6gb", "24gb", "24gb-bf16", "nano")]
    runs += [
        run_of(tmp_path, "16gb", **changes),
        run_of(tmp_path, "16gb", lora__targets=["transformer_blocks.*.attn.*"]),
    ]
    return [
        Path(hand_over(config, target, tmp_path / str(number), ignore).settings) for number, config in enumerate(runs)
    ]


def arguments_of(*files: Path) -> argparse.ArgumentParser:
    """A parser with every argument that scripts add to theirs; what is no literal in them is left out."""
    kinds = {"int": int, "float": float, "str": str, "int_or_float": float}
    parser = argparse.ArgumentParser(conflict_handler="resolve")
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"):
                continue
            options: dict[str, Any] = {}
            for word in node.keywords:
                if word.arg == "type":
                    options["type"] = kinds.get(getattr(word.value, "id", ""), str)
                elif word.arg in ("choices", "nargs", "action", "default"):
                    try:
                        options[word.arg] = ast.literal_eval(word.value)
                    except ValueError:
                        continue
            names = [each.value for each in node.args if isinstance(each, ast.Constant)]
            if names and names[0].startswith("-"):
                parser.add_argument(*names, **options)
    return parser


def test_diffusers_script_reads_what_is_written(tmp_path: Path) -> None:
    script = PEERS / "diffusers/examples/dreambooth/train_dreambooth_lora_flux.py"
    for file in exported(tmp_path, Target.DIFFUSERS):
        options = read_script(file.read_text(encoding="utf-8"), file.name).options
        options.pop("script")
        words = [f"--{key}" if value is True else f"--{key}={value}" for key, value in options.items()]
        read = arguments_of(script).parse_args(words)
        assert read.learning_rate == take_over(file, file.name).config.training.learning_rate


def test_sd_scripts_reads_what_is_written(tmp_path: Path) -> None:
    root = PEERS / "sd-scripts"
    names = ("train_network.py", "flux_train_network.py", "library/train_util.py", "library/flux_train_utils.py",
             "library/custom_train_functions.py", "library/config_util.py")  # fmt: skip
    files = [root / name for name in names if (root / name).is_file()]
    for file in exported(tmp_path, Target.SD_SCRIPTS):
        settings = tomli.loads(file.read_text(encoding="utf-8"))
        words = []
        for key, value in settings.items():
            values = value if isinstance(value, list) else [value]
            words += [] if value is False else [f"--{key}"] if value is True else [f"--{key}", *map(str, values)]
        read = vars(arguments_of(*files).parse_args(words))
        assert read["network_dim"] == settings["network_dim"]


CLASSES = ("SaveConfig", "LoggingConfig", "SampleItem", "SampleConfig", "NetworkConfig", "TrainConfig", "EMAConfig",
           "ModelConfig", "DatasetConfig")  # fmt: skip


def test_ai_toolkit_reads_what_is_written(tmp_path: Path) -> None:
    import torch

    tree = ast.parse((PEERS / "ai-toolkit/toolkit/config_modules.py").read_text(encoding="utf-8"))
    kept = [
        node
        for node in tree.body
        if (isinstance(node, ast.ClassDef) and node.name in CLASSES) or (isinstance(node, ast.Assign))
    ]
    space: dict[str, Any] = {**vars(typing), "torch": torch, "os": os, "__name__": "config_modules"}
    exec(compile(ast.Module(kept, []), "config_modules.py", "exec"), space)
    for file in exported(tmp_path, Target.AI_TOOLKIT):
        (process,) = yaml.safe_load(file.read_text(encoding="utf-8"))["config"]["process"]
        parts = {"save": "SaveConfig", "logging": "LoggingConfig", "sample": "SampleConfig", "network": "NetworkConfig",
                 "train": "TrainConfig", "model": "ModelConfig"}  # fmt: skip
        read = {part: space[name](**process[part]) for part, name in parts.items()}
        for row in process["datasets"]:
            space["DatasetConfig"](**row)
        for part, config in read.items():
            # What a class does not know it drops without a word.
            unknown = [key for key in process[part] if not hasattr(config, key) and key not in ("prompts", "format")]
            assert not unknown, part
        assert read["model"].is_flux
        assert read["train"].lr == take_over(file, file.name).config.training.learning_rate


def test_onetrainer_reads_what_is_written(tmp_path: Path) -> None:
    files = [str(file) for file in exported(tmp_path, Target.ONETRAINER)]
    code = """
import json, sys
sys.path.insert(0, ".")
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
def known(given, read):
    for key, value in given.items():
        assert key == "__version" or hasattr(read, key), key
        if isinstance(value, dict):
            known(value, getattr(read, key))
for file in sys.argv[1:]:
    given = json.load(open(file))
    read = TrainConfig.default_values().from_dict(given)
    known(given, read)
    assert read.learning_rate == given["learning_rate"]
    for row in json.load(open(given["concept_file_name"])):
        concept = ConceptConfig.default_values().from_dict(row)
        assert concept.balancing == row["balancing"]
    for row in json.load(open(given["sample_definition_file_name"])):
        known(row, SampleConfig.default_values(read.model_type).from_dict(row))
print("read", len(sys.argv) - 1)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *files], cwd=PEERS / "OneTrainer", capture_output=True, text=True, check=False
    )
    assert done.stdout.endswith(f"read {len(files)}\n"), done.stderr


def test_simpletuner_knows_every_key_that_is_written(tmp_path: Path) -> None:
    root = PEERS / "SimpleTuner" / "simpletuner"
    pages = [*root.glob("simpletuner_sdk/server/services/field_registry/**/*.py"), *root.glob("helpers/**/*.py")]
    known = {name for page in pages for name in re.findall(r'"--(\w+)"', page.read_text(encoding="utf-8"))}
    for file in exported(tmp_path, Target.SIMPLETUNER):
        settings = json.loads(file.read_text(encoding="utf-8"))
        assert not settings.keys() - known
