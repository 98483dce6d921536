"""The data set of another trainer's run: rows of ``[[dataset.folders]]`` and shared settings."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluxtune.config.dataset import FolderConfig
from fluxtune.config.descriptions.documents import Document, Table
from fluxtune.config.descriptions.draft import Draft
from fluxtune.config.descriptions.onetrainer import read_concept
from fluxtune.config.descriptions.reading import OWN_FILE, Description, description_at
from fluxtune.config.documents import Layer, read_layer
from fluxtune.config.problems import problems_of
from fluxtune.config.settings import shown
from fluxtune.dataset.folder import list_folders
from fluxtune.errors import ConfigError, UsageError
from fluxtune.handover.given import Given
from fluxtune.handover.sources import Source


@dataclass
class Data:
    """What is known of the pictures.

    Attributes:
        rows: those of ``[[dataset.folders]]``.
        shared: settings of ``[dataset]``.
        origins: where each of those stands.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    shared: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)


def read_data(source: Source, alone: bool) -> Data:
    """The data set that a source names; what is wrong with it is left in the source's document.

    Args:
        alone: files of ours beside those of the trainer do not count.
    """
    given = source.given
    try:
        if source.trainer.name == "diffusers":
            return _folders_of_diffusers(source, alone)
        if source.trainer.name == "onetrainer" and given.has("concepts"):
            return _concepts(given)
        if source.data is not None:
            return _described(source, *source.data, alone)
        if source.trainer.name == "sd-scripts":
            return _folders_of_kohya(source)
    except UsageError as error:
        given.document.problems += error.problems if isinstance(error, ConfigError) else [error]
        return Data()
    given.warn("", "no data set is named: give its folder to `fluxtune train`, or add [[dataset.folders]]")
    return Data()


def _described(source: Source, text: str, key: str, alone: bool) -> Data:
    """A data set in a file of its own, or in the settings themselves."""
    given = source.given
    own = key == "datasets"
    file = source.folder / Path(text).name if own else source.found(text)
    if file is None:
        given.warn(key, f"{text} is not here: give the folder of pictures to `fluxtune train`")
        return Data()
    description = description_at(file, text if own else file.name, alone=alone)
    if description is None:
        given.refuse(key, f"{text} describes no data set")
        return Data()
    if source.trainer.name == "sd-scripts":
        _take_batch(given, description.layers[0] if description.layers else None, file)
    return _as_data(description, given.document)


def _as_data(description: Description, document: Document) -> Data:
    document.remarks += [each for each in description.remarks if each not in document.remarks]
    origins = {
        key: layer.where(("dataset", key))
        for layer in description.layers
        for key in layer.values.get("dataset", {})
        if key != "folders"
    }
    if description.layers:
        origins["folders"] = description.layers[0].where(("dataset", "folders", 0))
    return Data(list(description.rows), description.shared, origins)


def _take_batch(given: Given, layer: Layer | None, file: Path) -> None:
    """The size of batches, which a data set's TOML of kohya may say for all."""
    if layer is None or file.suffix.lower() != ".toml":
        return
    content = read_layer(file, file.name).values
    tables = [content.get("general", {}), *content.get("datasets", [])]
    sizes = {table["batch_size"] for table in tables if isinstance(table, dict) and "batch_size" in table}
    if len(sizes) == 1:
        given.values["dataset.batch_size"] = sizes.pop()
        given.lines["dataset.batch_size"] = given.where("dataset_config")
    elif sizes:
        given.warn("dataset_config", "batches of several sizes there; here training.batch_size is one for all")


def _concepts(given: Given) -> Data:
    """OneTrainer's concepts that stand in its settings."""
    draft = Draft(given.document)
    for index, row in given.rows("concepts"):
        read_concept(Table(given.document, (*given.where("concepts"), index), row), draft)
    return _checked(draft.layer(), given)


def _checked(layer: Layer, given: Given) -> Data:
    given.document.problems += problems_of(layer)
    dataset = layer.values["dataset"]
    origins = {key: layer.where(("dataset", key)) for key in dataset}
    return Data(dataset["folders"], {key: value for key, value in dataset.items() if key != "folders"}, origins)


def _folders_of_kohya(source: Source) -> Data:
    """Data sets that are said by options: folders of folders that are called ``10_zorvex dog``."""
    given = source.given
    draft = Draft(given.document)
    ending = given.text("caption_extension", ".caption")
    for key, kind in (("train_data_dir", "train"), ("reg_data_dir", "regularization")):
        if folder := given.text(key):
            row = {"path": given.document.folder_at(folder), "kind": kind, "captions": ending, "caption_lines": "first"}
            draft.row(given.where(key), row | {"masks": "none"})
    sides = [given.number_in("resolution", part) for part in str(given.text("resolution", "512")).split(",")]
    if all(sides):
        draft.share("resolution", [draft.square(given.where("resolution"), int(sides[0]), int(sides[-1]))],
                    given.where("resolution"))  # fmt: skip
    draft.share("buckets", given.switch("enable_bucket"), given.where("enable_bucket"))
    draft.share("flip", given.switch("flip_aug"), given.where("flip_aug"))
    dropout = float(given.number("caption_dropout_rate", 0.0))
    draft.share("caption_dropout", dropout, given.where("caption_dropout_rate"))
    return _checked(draft.layer(), given)


def _folders_of_diffusers(source: Source, alone: bool) -> Data:
    """A folder with a prompt for all its pictures, or one with captions in a metadata.jsonl."""
    given = source.given
    named, folder, prompt = given.text("dataset_name"), given.text("instance_data_dir"), given.text("instance_prompt")
    repeats, key = given.whole("repeats", 1), "dataset_name" if named else "instance_data_dir"
    column = given.text("caption_column")
    place = given.document.folder_at(named or folder or "")
    if named and not os.path.isdir(place) and (source.folder / OWN_FILE).is_file():
        place = str(source.folder)  # our own export, somewhere else than it was made for
    if named and not os.path.isdir(place):
        given.warn("dataset_name", f"{shown(named)} is on a hub, or not here: download its pictures into a folder")
        return Data()
    if not named and not folder:
        given.warn("", "no data set is named: give its folder to `fluxtune train`, or add [[dataset.folders]]")
        return Data()
    described = None if alone or not named else description_at(Path(place), named)
    if described is not None:
        return _as_data(described, given.document)
    row: dict[str, Any] = {"path": place, "repeats": repeats, "masks": "none", "folder_names": False}
    if not named or column is None:
        row |= {"captions": "none", "default_caption": prompt or ""}
    return Data([row], {"caption_dropout": 0.0}, {"folders": given.document.content.where(given.where(key))})


def pictures_of(rows: list[dict[str, Any]]) -> int | None:
    """How often pictures are seen in an epoch, by their repeats; None where a folder is not on this machine."""
    if not rows or not all(os.path.isdir(row["path"]) for row in rows):
        return None
    items = list_folders([FolderConfig.model_validate(row) for row in rows]).items
    return sum(item.repeats for item in items) or None
