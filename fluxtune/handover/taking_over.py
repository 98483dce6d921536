"""A run of another trainer as settings of ours: what could be taken over, from where, and what could not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fluxtune.config.checks import contradictions
from fluxtune.config.descriptions.documents import Remark
from fluxtune.config.descriptions.reading import without_defaults
from fluxtune.config.documents import Layer
from fluxtune.config.positions import KeyPath
from fluxtune.config.problems import problems_of
from fluxtune.config.schema import Config
from fluxtune.config.settings import defaults
from fluxtune.errors import ConfigError, UsageError
from fluxtune.files import write_text
from fluxtune.handover.common import OTHER_MODELS
from fluxtune.handover.data import Data, pictures_of, read_data
from fluxtune.handover.given import Given, brief
from fluxtune.handover.rules import Fixed, Values, nested
from fluxtune.handover.sources import Source, read_source
from fluxtune.redaction import without_tokens


@dataclass(frozen=True)
class TakenOver:
    """What a file comes to.

    Attributes:
        trainer: whose it is, as people call it.
        config: the settings of ours; paths are absolute.
        values: those that the file decides, by their dotted keys, without rows of folders.
        origins: where each of them stands.
        remarks: what could not be taken over, and what reads otherwise.
    """

    trainer: str
    config: Config
    values: Values
    origins: dict[str, str]
    remarks: tuple[Remark, ...]


def take_over(file: Path, source: str, *, alone: bool = False) -> TakenOver:
    """Read the settings of another trainer.

    Args:
        source: the file as the user wrote it, for messages.
        alone: files of ours beside those of the trainer do not count.

    Raises:
        UsageError: the file cannot be read, or is nobody's.
        ConfigError: with every value that makes no sense, and every one that cannot be trained here.
    """
    found = read_source(file, source)
    given, trainer = found.given, found.trainer
    _require_flux1(found)
    data = read_data(found, alone)
    count = None if given.document.problems else pictures_of(data.rows)
    sides = len(data.shared.get("resolution", [0])) if trainer.name != "onetrainer" else 1
    given.pictures = None if count is None else count * sides
    values, origins = _taken(found, data)
    for each in trainer.fixed:
        _compare(each, given)
    given.finish(trainer.technical, dict(trainer.meanings))
    _refuse(given)
    config = _checked(values, data, origins, given)
    remarks = tuple(sorted(given.document.remarks, key=lambda remark: remark.severity != "warning"))
    return TakenOver(trainer.title, config, values, origins, remarks)


def write_settings(taken: TakenOver, file: Path, source: str) -> None:
    """Write settings as a TOML of ours, each with its origin, and what could not be taken over at the top.

    Raises:
        UsageError: the file is there already.
        StorageError: it cannot be written.
    """
    if file.exists() or file.is_symlink():
        raise UsageError("this is there already", where=str(file), hint="name another file with --output")
    write_text(file, settings_text(taken, source))


def settings_text(taken: TakenOver, source: str) -> str:
    """The TOML of ``write_settings``."""
    import tomlkit

    lines = [f"# Taken over from {source}, of {taken.trainer}."]
    lost = [remark for remark in taken.remarks if remark.severity == "warning"]
    lines += ["#", "# What could not be taken over:"] if lost else []
    lines += [f"#   {_plain(remark.where)}: {_plain(remark.message)}" for remark in lost]
    section = ""
    for key, value in sorted(taken.values.items(), key=lambda item: list(defaults()).index(item[0])):
        heading, _, name = key.rpartition(".")
        if heading != section:
            section = heading
            lines += ["", f"[{heading}]"]
        elif not heading and not section:
            lines += [""]
        lines.append(f"{name} = {tomlkit.item(value).as_string()}  # {_plain(_short(taken.origins[key], source))}")
    for row in taken.config.dataset.folders:
        lines += ["", "[[dataset.folders]]"]
        plain = without_defaults(row.model_dump())
        lines += [f"{name} = {tomlkit.item(value).as_string()}" for name, value in plain.items()]
    return "\n".join(lines) + "\n"


def _short(origin: str, source: str) -> str:
    """An origin without the file that all of them are from."""
    return origin.replace(f"{source}:", "line ")


def _plain(text: str) -> str:
    """Text as a comment of TOML may have it."""
    return re.sub(r"[\x00-\x1f\x7f]", " ", without_tokens(text)).encode(errors="replace").decode()


def _require_flux1(source: Source) -> None:
    """Refuse runs of other models before all their settings are found wanting.

    Raises:
        ConfigError: it is another model.
    """
    given = source.given
    hint = "fluxtune teaches FLUX.1-dev and FLUX.1-schnell"
    for each in source.trainer.fixed:
        value = given.get(each.theirs, each.usual) if each.refused else None
        if value is not None and value not in (each.value, *each.also):
            given.refuse(each.theirs, f"{each.theirs} is {brief(value)}: {each.otherwise}", hint)
    if source.trainer.other_model is not None and (why := source.trainer.other_model(given)):
        given.refuse("", why, hint)
    for key in ("pretrained_model_name_or_path", "model.name_or_path", "base_model_name", "model_flavour"):
        name = given.values.get(key)
        if isinstance(name, str) and any(sign in Path(name).name.lower() for sign in OTHER_MODELS):
            given.refuse(key, f"{name} is another model than FLUX.1", hint)
    _refuse(given)


def _taken(source: Source, data: Data) -> tuple[Values, dict[str, str]]:
    """The settings that all rules come to and where they stand; what the data set says lies above them."""
    given, title = source.given, source.trainer.title
    values: Values = {}
    origins: dict[str, str] = {}
    for rule in source.trainer.rules:
        read = rule.read(given)
        places = [
            name for name in given.values if any(name == key or name.startswith(f"{key}.") for key in rule.theirs)
        ]
        for key, value in read.items():
            if not places and value == defaults()[key]:
                continue
            values[key] = value
            origins[key] = _origin(given, key, places) if places else f"by default in {title}"
    for key, value in data.shared.items():
        values[f"dataset.{key}"] = value
        origins[f"dataset.{key}"] = data.origins.get(key, title)
    if source.trainer.masks_by is not None and not given.switch(source.trainer.masks_by):
        data.rows = [{**row, "masks": "none"} for row in data.rows]
    _fit(values, given)
    return values, {key: origins.get(key, f"as {title} has it") for key in values}


def _origin(given: Given, key: str, places: list[str]) -> str:
    """The most alike of the keys that decide a setting, and its line."""
    name = max(places, key=lambda place: SequenceMatcher(None, place, key.rpartition(".")[2]).ratio())
    return f"{name}, {given.document.content.where(given.where(name))}"


def _fit(values: Values, given: Given) -> None:
    """Mend what goes together there and does not here, and say so."""
    usual = {**defaults(), **values}
    steps, warmup = usual["training.steps"], usual["training.warmup"]
    if isinstance(steps, int) and isinstance(warmup, int) and 0 < steps <= warmup:
        given.warn("", f"a warm-up of {warmup} steps is as long as the run: training.warmup becomes {steps - 1}")
        values["training.warmup"] = steps - 1
    if usual["training.precision"] == "fp32" and usual["memory.base_precision"] == "bf16":
        # What is not quantised is held as it is computed with.
        values["memory.base_precision"] = "fp32"
    trackers = values.get("tracking.trackers", [])
    if missing := [name for name in trackers if find_spec(name) is None]:
        given.note("", f"tracking.trackers: left out, for they are not installed: {', '.join(missing)}")
        values["tracking.trackers"] = [name for name in trackers if name not in missing]
    method, has_prompts = usual["training.preservation.method"], usual["training.preservation.prompts"]
    needed = ["dataset.class_word", "dataset.trigger"] if method == "output" else ["dataset.class_word"]
    if method != "none" and not has_prompts and (unset := [key for key in needed if not usual[key]]):
        given.warn("", f"training.preservation is left out: it needs {' and '.join(unset)}")
        values["training.preservation.method"] = "none"


def _compare(each: Fixed, given: Given) -> None:
    """Say what a value comes to that is another one than a LoRA of FLUX.1 has here."""
    seen = given.get(each.theirs, each.usual)
    if isinstance(each.value, bool) and not isinstance(seen, bool) and seen is not None:
        seen = given.switch(each.theirs, each.usual)
    if isinstance(each.value, float) and isinstance(seen, int | str):
        seen = given.number(each.theirs, each.usual)
    if each.otherwise and not each.refused and seen is not None and seen not in (each.value, *each.also):
        what = (
            f"{each.theirs} = {brief(seen)}" if given.has(each.theirs) else f"{each.theirs} is {brief(seen)} by default"
        )
        given.warn(each.theirs, f"{what}: {each.otherwise}")


def _checked(values: Values, data: Data, origins: dict[str, str], given: Given) -> Config:
    """The whole configuration.

    Raises:
        ConfigError: a value is out of range; ``where`` is its line in the other trainer's file.
    """
    content = given.document.content
    table = nested(values)
    table.setdefault("dataset", {})["folders"] = data.rows
    places: dict[KeyPath, int] = {}
    for key, origin in origins.items():
        line = origin.rpartition(":")[2]
        if line.isdigit():
            places[tuple(key.split("."))] = int(line)
    problems = problems_of(Layer(content.source, table, content.folder, places))
    if problems:
        raise ConfigError(problems)
    config = Config.model_validate(table)
    if problems := list(contradictions(config, origins)):
        raise ConfigError(problems)
    return config


def _refuse(given: Given) -> None:
    if given.document.problems:
        unique: dict[str, Any] = {str(problem): problem for problem in given.document.problems}
        raise ConfigError(list(unique.values()))
