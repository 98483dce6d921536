"""A file of another trainer, read by what stands in it: whose it is, its settings, and what lies beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from fluxtune.config.descriptions.documents import Document, read_document
from fluxtune.config.documents import Layer, read_text
from fluxtune.config.positions import KeyPath
from fluxtune.errors import ConfigError, UsageError
from fluxtune.handover import sd_scripts
from fluxtune.handover.command_lines import options_in, read_script
from fluxtune.handover.given import Given, flattened
from fluxtune.handover.rules import Trainer
from fluxtune.handover.trainers import TRAINERS

_MOST = 5_000
_DOCUMENTS = (".toml", ".yaml", ".yml", ".json")

_ENVIRONMENT = {
    "RESUME_CHECKPOINT": "resume_from_checkpoint",
    "DATALOADER_CONFIG": "data_backend_config",
    "TRAINING_SEED": "seed",
    "MAX_NUM_STEPS": "max_train_steps",
    "NUM_EPOCHS": "num_train_epochs",
    "CHECKPOINTING_STEPS": "checkpoint_step_interval",
    "CHECKPOINTING_LIMIT": "checkpoints_total_limit",
    "HUB_MODEL_NAME": "hub_model_id",
    "PUSH_CHECKPOINTS": "push_checkpoints_to_hub",
    "MODEL_NAME": "pretrained_model_name_or_path",
    "USE_GRADIENT_CHECKPOINTING": "gradient_checkpointing",
    "VALIDATION_STEPS": "validation_step_interval",
    "LR_SCHEDULE": "lr_scheduler",
    "MINIMUM_RESOLUTION": "minimum_image_size",
    "TRAINING_NUM_PROCESSES": "num_processes",
    "TRAINING_NUM_MACHINES": "num_machines",
    "TRAINING_DYNAMO_BACKEND": "dynamo_backend",
    "TRAINER_DYNAMO_BACKEND": "dynamo_backend",
}
"""Variables of SimpleTuner's config.env that are not called like their argument in capitals."""


_FURTHER = "TRAINER_EXTRA_ARGS"
"""The variable of it that holds further arguments."""


@dataclass
class Source:
    """A file that was read.

    Attributes:
        trainer: whose it is.
        given: its settings; problems and remarks are gathered in ``given.document``.
        data: the file that describes the data set, if that is one of its own, as it is written there.
    """

    trainer: Trainer
    given: Given
    data: tuple[str, str] | None = None

    @property
    def folder(self) -> Path:
        """Where the file lies."""
        return self.given.document.content.folder

    def found(self, text: str) -> Path | None:
        """A file that this one names: beside it or above, where the trainer may run; or beside it by its last name."""
        path = Path(os.path.expanduser(text))
        last = text.replace("\\", "/").rpartition("/")[2]
        above = (folder / path for folder in self.folder.parents)
        places = (self.folder / path, Path.cwd() / path, self.folder / last, *above)
        return next((place for place in places if os.path.isfile(place)), None)


def read_source(file: Path, source: str) -> Source:
    """Read a file of settings of another trainer.

    Raises:
        UsageError: it cannot be read, is no text of its kind, or is nobody's.
    """
    if not os.path.lexists(file):
        raise UsageError("there is no such file", where=source, hint="check the path")
    if os.path.isdir(file):
        raise UsageError("this is a folder", where=source, hint="name the file of settings in it")
    is_document = file.suffix.lower() in _DOCUMENTS or _begins_as_json(file)
    return _of_document(file, source) if is_document else _of_script(file, source)


def _begins_as_json(file: Path) -> bool:
    try:
        with open(file, encoding="utf-8-sig", errors="replace") as text:
            return text.read(64).lstrip().startswith("{")
    except OSError:
        return False  # whoever reads it says why


def _of_document(file: Path, source: str) -> Source:
    content = read_document(file, source)
    values = content.values
    if _is_job(values):
        return _job(content)
    flat = _all(_flat(values), source)
    keys = {name for name, _, _ in flat}
    if "LoRA_type" in keys:
        hint = "import the TOML that it writes for sd-scripts beside the LoRA, or the command that it prints"
        raise UsageError("these are settings of the interface kohya_ss", where=source, hint=hint)
    trainer = next((trainer for trainer, is_one in _SIGNS if is_one(keys)), None)
    if trainer is None:
        raise _nobodys(values, source)
    given = Given(Document(content, TRAINERS[trainer].title), {}, {})
    for name, value, path in flat:
        given.values[name], given.lines[name] = value, path
    return _with_files(Source(TRAINERS[trainer], given))


def _all(settings: Iterator[tuple[str, Any, KeyPath]], source: str) -> list[tuple[str, Any, KeyPath]]:
    """The settings, if they are not more than anybody has: tables that stand for others multiply."""
    found = list(islice(settings, _MOST + 1))
    if len(found) > _MOST:
        raise UsageError(f"these are more than {_MOST:,} settings", where=source, hint="check that this is the file")
    return found


def _flat(values: dict[str, Any]) -> Iterator[tuple[str, Any, KeyPath]]:
    """Values by their names without dashes; sections of sd-scripts' files do not count, as it reads them."""
    is_sections = any(isinstance(each, dict) and "network_module" in each for each in values.values())
    for key, value in values.items():
        if is_sections and isinstance(value, dict):
            yield from ((name, inner, (key, name)) for name, inner in value.items())
        elif isinstance(value, dict) and value and key not in ("tread_config",):
            yield from flattened(value, (key,), f"{str(key).removeprefix('--')}.")
        else:
            yield str(key).removeprefix("--"), value, (key,)


_SIGNS: tuple[tuple[str, Callable[[set[str]], bool]], ...] = (
    ("onetrainer", lambda keys: bool({"training_method", "base_model_name"} & keys)),
    ("simpletuner", lambda keys: "model_family" in keys or {"model_type", "data_backend_config"} <= keys),
    ("sd-scripts", lambda keys: bool({"network_module", "network_dim", "dataset_config"} & keys)),
    ("diffusers", lambda keys: "pretrained_model_name_or_path" in keys and bool(
        {"instance_data_dir", "dataset_name", "instance_prompt", "rank", "lora_layers"} & keys)),
)  # fmt: skip
"""Names that only one trainer has; the first that fits counts."""


def _nobodys(values: dict[str, Any], source: str) -> UsageError:
    if "datasets" in values or "" in values:
        hint = "`fluxtune train FILE` and `fluxtune export dataset FILE` read it as it is"
        return UsageError("this describes a data set, and no run", where=source, hint=hint)
    if {"model", "dataset", "lora", "training", "memory"} & values.keys():
        hint = "fluxtune train --config FILE"
        return UsageError("these are settings of fluxtune, as it seems", where=source, hint=hint)
    known = "ai-toolkit, SimpleTuner, sd-scripts, OneTrainer, diffusers' script"
    return UsageError(
        f"this is no file of settings of a trainer that is known: {known}", where=source,
        hint="docs/moving.md shows what is read",
    )  # fmt: skip


def _is_job(values: dict[str, Any]) -> bool:
    config = values.get("config")
    return isinstance(config, dict) and isinstance(config.get("process"), list)


def _job(content: Layer) -> Source:
    """A job of ai-toolkit; the settings are those of its first process."""
    trainer = TRAINERS["ai-toolkit"]
    given = Given(Document(content, trainer.title), {}, {})
    processes = content.values["config"]["process"]
    if not processes or not isinstance(processes[0], dict):
        given.document.refuse(("config", "process"), "the job has no process", "give a job that trains")
        return Source(trainer, given)
    for name, value, path in _all(flattened(processes[0], ("config", "process", 0)), content.source):
        given.values[name], given.lines[name] = value, path
    given.values["name"], given.lines["name"] = content.values["config"].get("name"), ("config", "name")
    if len(processes) > 1:
        given.document.warn(("config", "process", 1), "of several processes the first is taken")
    given.asked |= {"datasets", "trigger_word"}
    given.get("train.reg_weight")
    return Source(trainer, given, data=(content.source, "datasets"))


def _of_script(file: Path, source: str) -> Source:
    script = read_script(read_text(file, source), source)
    values, name = script.options, str(script.options.get("script", ""))
    if name.startswith("simpletuner") or (not values and {"MODEL_TYPE", "MODEL_FAMILY"} & script.variables.keys()):
        trainer = TRAINERS["simpletuner"]
        environment = {_ENVIRONMENT.get(key, key.lower()): (key, value) for key, value in script.variables.items()}
        more = str(environment.pop(_FURTHER.lower(), ("", ""))[1])
        further = options_in(more, script.lines.get((_FURTHER,), 1), source)
        values = {argument: value for argument, (_, value) in environment.items()} | further | script.options
        values.pop("script", None)
        lines: dict[str, KeyPath] = {argument: (key,) for argument, (key, _) in environment.items()}
        lines |= dict.fromkeys(further, (_FURTHER,))
    elif "train_network" in name or "network_module" in values:
        trainer, lines = TRAINERS["sd-scripts"], {}
    elif name.startswith("train_dreambooth"):
        trainer, lines = TRAINERS["diffusers"], {}
    else:
        message = "this starts no trainer that is known" if name else "this is neither settings nor a command"
        hint = (
            "give the command that starts flux_train_network.py or train_dreambooth_lora_flux.py, or a file of settings"
        )
        raise UsageError(message, where=source, hint=hint)
    content = Layer(source, dict(values), file.absolute().parent, script.lines)
    given = Given(Document(content, trainer.title), dict(values), {key: (key,) for key in values} | lines)
    found = Source(trainer, given)
    for key, value in values.items():
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(text, str) and ("$(" in text or text.startswith(("$", "%"))) for text in texts):
            given.document.warn(given.where(key), f"{key} = {value}: the script does not say what that is")
    return _with_files(_with_config_file(found))


def _with_config_file(source: Source) -> Source:
    """sd-scripts' options with those of the file that ``--config_file`` names below them."""
    given = source.given
    name = given.values.get("config_file") if source.trainer.name == "sd-scripts" else None
    if not isinstance(name, str):
        return source
    file = source.found(name) or source.found(f"{name}.toml")
    if file is None:
        given.refuse("config_file", f"{name} is not here", "import that file itself")
        return source
    for key, value, _ in _flat(read_document(file, name).values):
        given.values.setdefault(key, value)
        given.lines.setdefault(key, given.where("config_file"))
    return source


def _with_files(source: Source) -> Source:
    """What the settings name beside themselves: prompts, and which file describes the data set."""
    given, name = source.given, source.trainer.name
    if name == "sd-scripts":
        source.data = _named(source, "dataset_config")
        _read_beside(source, "sample_prompts", lambda file: sd_scripts.rows_of(read_text(file, file.name)))
    elif name == "simpletuner":
        source.data = _named(source, "data_backend_config")
        _read_beside(source, "user_prompt_library", lambda file: [read_document(file, file.name).values])
    elif name == "onetrainer":
        source.data = None if given.has("concepts") else _named(source, "concept_file_name")
        if not given.has("samples"):
            _read_beside(source, "sample_definition_file_name", _rows, "samples")
    return source


def _rows(file: Path) -> list[dict[str, Any]]:
    rows = read_document(file, file.name).values.get("", [])
    return [row for row in rows if isinstance(row, dict)]


def _named(source: Source, key: str) -> tuple[str, str] | None:
    text = source.given.text(key)
    return (text, key) if text else None


def _read_beside(source: Source, key: str, read: Callable[[Path], list[Any]], name: str | None = None) -> None:
    """Rows of a file that is named, as if they stood in the settings."""
    text = source.given.text(key)
    file = source.found(text) if text else None
    if file is None:
        return
    name = name or f"{key}.rows"
    try:
        source.given.values[name] = read(file)
    except UsageError as error:
        source.given.document.problems += error.problems if isinstance(error, ConfigError) else [error]
    source.given.lines[name] = source.given.where(key)
    source.given.asked.add(name)
