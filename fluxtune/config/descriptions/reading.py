"""Rows that name a file instead of a folder: what it says comes to rows and to a layer below the user's own.

A file is kohya's TOML, ai-toolkit's YAML or JSON, SimpleTuner's JSON, or a TOML of ours with a ``[dataset]``; a folder
may have one of ours in it. What another trainer's file cannot hold stands in a second one beside it, see ``beside``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fluxtune.config.dataset import NO_FOLDERS, DatasetConfig, FolderConfig
from fluxtune.config.descriptions import ai_toolkit, kohya, onetrainer, simpletuner
from fluxtune.config.descriptions.documents import Document, Remark, read_document
from fluxtune.config.documents import Layer, read_layer
from fluxtune.config.problems import problems_of
from fluxtune.errors import ConfigError, FluxtuneError, UsageError

OWN_FILE = "dataset.toml"
"""In a folder of pictures: settings that belong to it, and its rows if it has more than one."""

ENDINGS = (".toml", ".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Description:
    """What a file says of a data set.

    Attributes:
        rows: those of ``[[dataset.folders]]``, with absolute paths.
        layers: its settings; what stands beside it lies above it.
        remarks: what of it has no counterpart here.
    """

    rows: tuple[dict[str, Any], ...]
    layers: tuple[Layer, ...] = ()
    remarks: tuple[Remark, ...] = ()

    @property
    def shared(self) -> dict[str, Any]:
        """The settings of ``[dataset]`` that it gives to all folders."""
        given = [layer.values.get("dataset", {}) for layer in self.layers]
        return {key: each[key] for each in given for key in each if key != "folders"}

    @property
    def dataset(self) -> DatasetConfig:
        """The data set by itself: what it does not say is at its default."""
        return DatasetConfig.model_validate({**self.shared, "folders": list(self.rows)})


def beside(file: Path) -> Path:
    """Where what a file cannot hold stands: ``set.yaml`` -> ``set.fluxtune.toml``."""
    return file.with_name(f"{file.stem}.fluxtune.toml")


def description_at(path: Path, source: str, *, alone: bool = False) -> Description | None:
    """What describes the data set at a path: the file itself, or the one of ours in the folder; None if nothing does.

    Args:
        source: the path as the user wrote it, for messages.
        alone: another trainer's file is read without the one of ours beside it.

    Raises:
        ConfigError: it cannot be read or makes no sense; all problems at once.
    """
    if os.path.isdir(path):
        own = path / OWN_FILE
        if not os.path.isfile(own):
            return None
        layer = read_layer(own, str(Path(source) / OWN_FILE))
        if "dataset" not in layer.values:
            remark = Remark("note", layer.source, "it is another trainer's: give the file itself to train by it")
            return Description(({"path": str(path)},), remarks=(remark,))
        return _own(layer)
    if path.suffix.lower() not in ENDINGS or not os.path.isfile(path):
        return None
    content = read_document(path, source)
    if path.suffix.lower() == ".toml" and "dataset" in content.values:
        return _own(content)
    return _foreign(path, content, alone)


def _own(layer: Layer) -> Description:
    """Ours: it is a layer as it is, and without rows about its own folder."""
    if problems := problems_of(layer):
        raise ConfigError(problems)
    given = layer.values["dataset"].get("folders", [{"path": "."}])
    rows = tuple(_anchored(row, layer.folder) for row in given)
    problems = [
        UsageError(
            f"{given[index]['path']} is a file: wanted a folder",
            where=layer.where(("dataset", "folders", index, "path")),
            hint="give the file itself, or name it in the settings of the run",
        )
        for index, row in enumerate(rows)
        if os.path.isfile(row["path"])
    ]
    if problems:
        raise ConfigError(problems)
    return Description(rows, (layer,), tuple(_passed_over(rows, layer)))


def _passed_over(rows: Iterable[dict[str, Any]], layer: Layer) -> Iterator[Remark]:
    """That folders have settings of their own, which do not count where another file describes them."""
    for path in dict.fromkeys(row["path"] for row in rows):
        own = Path(path) / OWN_FILE
        if os.path.isfile(own) and os.path.realpath(own) != os.path.realpath(layer.folder / Path(layer.source).name):
            yield Remark("note", str(own), f"it is not read: {layer.source} describes the folder")


def _foreign(file: Path, content: Layer, alone: bool) -> Description:
    trainer, read = _convention(file, content)
    document = Document(content, trainer)
    layer = read(document)
    problems = document.problems + problems_of(layer)
    if not problems and not layer.values["dataset"]["folders"]:
        hint = "docs/datasets.md shows what is read"
        message = f"no folder of pictures is named in what {trainer} reads"
        problems = [UsageError(message, where=content.source, hint=hint)]
    layers, rest = [layer], beside(file)
    if rest.is_file() and not alone:
        layers.append(read_layer(rest, str(Path(content.source).with_name(rest.name))))
        problems += problems_of(layers[-1])
    if problems:
        raise ConfigError(problems)
    rows = _completed(layer.values["dataset"]["folders"], layers[1:], content.source)
    return Description(rows, tuple(layers), (*document.remarks, *_passed_over(rows, layer)))


def _convention(file: Path, content: Layer) -> tuple[str, Callable[[Document], Layer]]:
    """Whose the file is."""
    if file.suffix.lower() == ".toml":
        if "datasets" in content.values or "general" in content.values:
            return kohya.NAME, kohya.read
        message = "this TOML describes no data set: wanted [[datasets]] as kohya has it, or [dataset] and its folders"
        raise _refusal(message, content)
    if onetrainer.is_one(content.values):
        return onetrainer.NAME, onetrainer.read
    if file.suffix.lower() == ".json" and "" in content.values:
        return simpletuner.NAME, simpletuner.read
    if kohya.is_one(content.values):
        return kohya.NAME, kohya.read
    return ai_toolkit.NAME, ai_toolkit.read


def _refusal(message: str, content: Layer) -> FluxtuneError:
    hint = "settings of fluxtune are given with --config; docs/datasets.md shows what is read as a data set"
    return ConfigError([UsageError(message, where=content.source, hint=hint)])


def _completed(rows: list[dict[str, Any]], beside: list[Layer], source: str) -> tuple[dict[str, Any], ...]:
    """The rows of a description, with what the file beside it says of the same folders.

    Raises:
        ConfigError: it says something of another folder.
    """
    completed = [dict(row) for row in rows]
    problems: list[FluxtuneError] = []
    for layer in beside:
        for index, addition in enumerate(layer.values.get("dataset", {}).get("folders", [])):
            added = _anchored(addition, layer.folder)
            place = os.path.realpath(added.pop("path"))
            meant = [row for row in completed if os.path.realpath(row["path"]) == place]
            for row in meant:
                row.update(added)
            if not meant:
                where = layer.where(("dataset", "folders", index, "path"))
                message = f"{addition['path']} is no folder of {source}"
                problems.append(UsageError(message, where=where, hint="give the path of one, or remove the row"))
    if problems:
        raise ConfigError(problems)
    return tuple(completed)


def _anchored(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A row with the paths that are relative to ``folder`` made whole."""
    anchored = dict(row)
    if not row["path"].startswith("nano:"):
        anchored["path"] = str(folder / os.path.expanduser(row["path"]))
    if row.get("masks", "none") not in NO_FOLDERS:
        masks = str(folder / os.path.expanduser(row["masks"]))
        anchored["masks"] = masks if os.path.isdir(masks) else row["masks"]
    return anchored


def folders_of(path: Path) -> list[FolderConfig]:
    """The rows that a folder of pictures comes to: those of its own file, or itself."""
    description = description_at(path, str(path))
    return [FolderConfig(path=str(path))] if description is None else description.dataset.folders


def spread(layer: Layer, find: Callable[[dict[str, Any]], Description | None]) -> tuple[Layer, list[Description]]:
    """A layer whose rows that name a description are replaced by what those say, and the descriptions.

    Repeats and weights of a row multiply with those of the rows that it stands for; its other keys replace theirs.

    Raises:
        ConfigError: a description is wrong, or what they multiply to is out of range.
    """
    rows: list[dict[str, Any]] = []
    descriptions = []
    problems: list[FluxtuneError] = []
    for row in layer.values["dataset"]["folders"]:
        try:
            description = find(row)
        except UsageError as error:
            problems += error.problems if isinstance(error, ConfigError) else [error]
            continue
        if description is None:
            rows.append(row)
            continue
        descriptions.append(description)
        for inner in description.rows:
            one = {**inner, **row, "path": inner["path"]}
            for key in ("repeats", "weight"):
                if key in row and key in inner:
                    one[key] = row[key] * inner[key]
            rows.append(one)
    dataset = {**layer.values["dataset"], "folders": rows}
    whole = replace(layer, values={**layer.values, "dataset": dataset})
    if problems := problems or problems_of(whole):
        raise ConfigError(problems)
    return whole, descriptions


def own_text(shared: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """A data set as a file of ours: shared settings of ``[dataset]``, and rows without what is so by default."""
    import tomlkit

    return tomlkit.dumps({"dataset": {**shared, "folders": [without_defaults(row) for row in rows]}})


def changed(dataset: DatasetConfig) -> dict[str, Any]:
    """The shared settings that are not at their defaults."""
    usual = DatasetConfig().model_dump()
    return {key: value for key, value in dataset.model_dump(exclude={"folders"}).items() if value != usual[key]}


def without_defaults(row: dict[str, Any]) -> dict[str, Any]:
    """A row of ``[[dataset.folders]]`` with the keys alone that it needs."""
    usual = FolderConfig(path=row["path"]).model_dump()
    return {key: value for key, value in row.items() if key == "path" or value != usual[key]}
