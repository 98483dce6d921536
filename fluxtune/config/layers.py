"""Settings in layers: schema defaults < preset < the user's TOML < flags and ``--set``.

A preset that only the base model implies, and the settings of a run that made a LoRA, lie below the preset.

Every layer is checked by itself, so that all mistakes of all layers are told at once, each at its own place. The
layers are then merged key by key; a list replaces the list below it. Each value knows the layer that gave it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluxtune.config import presets
from fluxtune.config.checks import contradictions
from fluxtune.config.dataset import NO_FOLDERS
from fluxtune.config.descriptions.documents import Remark
from fluxtune.config.descriptions.reading import OWN_FILE, Description, description_at, spread
from fluxtune.config.documents import Layer, parse_key, parse_value, read_layer
from fluxtune.config.problems import problems_of
from fluxtune.config.schema import Config
from fluxtune.config.settings import look_up, sections, settings, shown
from fluxtune.errors import ConfigError, FluxtuneError, UsageError
from fluxtune.nano import EMBEDDED

PROJECT_FILE = "fluxtune.toml"
EMBEDDED_PREFIX = f"{EMBEDDED}:"


@dataclass(frozen=True)
class Resolved:
    """The whole configuration.

    Attributes:
        origins: for each dotted key the place that its value comes from.
        remarks: what of other trainers' descriptions of data sets was not taken over.
        described: settings of ``[dataset]`` that the data sets give themselves.
    """

    config: Config
    origins: dict[str, str]
    remarks: tuple[Remark, ...] = ()
    described: dict[str, Any] = field(default_factory=dict)


def resolve(
    *,
    preset: str | None,
    config_file: Path | None,
    flags: dict[str, tuple[str, object]],
    sets: list[str],
    working_folder: Path,
    lowest: Layer | None = None,
    data_sets: bool = True,
    project_file: bool = True,
) -> Resolved:
    """Read all layers, check them and merge them.

    Args:
        preset: name or path of a preset; none takes the one that ships for the embedded model if that is the base.
        config_file: the user's TOML; none takes ``fluxtune.toml`` of the working folder if there is one, and
            ``project_file`` is set.
        flags: dotted key -> (flag as the user writes it, its value).
        sets: values of ``--set``, each ``section.key=value``.
        working_folder: what relative paths on the command line are relative to.
        lowest: a layer below the preset, for instance of the run that made a LoRA. Its data sets are taken as it
            names them.
        data_sets: read what the data sets say of themselves.

    Raises:
        ConfigError: with every mistake of every layer.
    """
    problems: list[FluxtuneError] = []
    base = [lowest] if lowest is not None else []
    base += _preset_layers(preset, working_folder, problems)
    user = _user_layers(config_file, working_folder, problems) if config_file or project_file else []
    user += [Layer(flag, _nested(key.split("."), value), working_folder) for key, (flag, value) in flags.items()]
    user += _set_layers(sets, working_folder, problems)
    is_embedded = _base_of([*base, *user]) == EMBEDDED
    if is_embedded and preset is None:
        base.insert(0, _preset_layer(presets.built_in(EMBEDDED)))
    for layer in (*base, *user):
        problems += problems_of(layer)
    if problems:
        raise ConfigError(problems)

    layers = [*base, *(_demo_layers([*base, *user]) if is_embedded else []), *user]
    descriptions: list[Description] = []
    if data_sets:
        layers, descriptions = _with_data_sets(layers, len(layers) - len(user), lowest)
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merge(merged, _anchored(layer.values, "", layer.folder))
    config = Config.model_validate(merged)
    ranks = {key: _rank(layers, key) for key, setting in settings().items() if not setting.in_row}
    origins = {key: _origin(layers, rank, key) for key, rank in ranks.items()}
    if problems := list(contradictions(config, origins, ranks)):
        raise ConfigError(problems)
    remarks = tuple(remark for description in descriptions for remark in description.remarks)
    described = {key: value for each in descriptions for key, value in each.shared.items()}
    return Resolved(config, origins, remarks, described)


def to_toml(config: Config) -> str:
    """The whole configuration as TOML that reads back as an equal one; unset values are left out."""
    import tomlkit

    return tomlkit.dumps(config.model_dump(exclude_none=True))


def _preset_layers(preset: str | None, working_folder: Path, problems: list[FluxtuneError]) -> list[Layer]:
    if preset is None:
        return []
    try:
        return [_preset_layer(presets.find(preset, working_folder))]
    except UsageError as error:
        problems.append(error)
        return []


def _preset_layer(preset: presets.Preset) -> Layer:
    return read_layer(preset.file, preset.source, f"preset {preset.name} ({{}})")


def _user_layers(config_file: Path | None, working_folder: Path, problems: list[FluxtuneError]) -> list[Layer]:
    file = working_folder / (config_file or PROJECT_FILE)
    if config_file is None and not os.path.lexists(file):
        return []
    try:
        return [read_layer(file, str(config_file or PROJECT_FILE))]
    except UsageError as error:
        problems.append(error)
        return []


def _set_layers(sets: list[str], working_folder: Path, problems: list[FluxtuneError]) -> list[Layer]:
    layers = []
    for text in sets:
        name, equals, value = text.partition("=")
        parts = parse_key(name.strip())
        if not equals or parts is None:
            problems.append(
                UsageError(
                    f"{shown(text)} sets nothing: wanted section.key=value",
                    where="--set",
                    hint="for instance --set training.steps=500",
                )
            )
        elif (key := ".".join(parts)) in sections():
            problems.append(
                UsageError(
                    f"{key} is a section: wanted one of its settings",
                    where="--set",
                    hint=f"for instance --set {next(known for known in settings() if known.startswith(key + '.'))}=...",
                )
            )
        else:
            layers.append(Layer("--set", _nested(parts, parse_value(value.strip())), working_folder))
    return layers


def _base_of(layers: list[Layer]) -> object:
    """The base model that the highest of the layers names, not yet checked."""
    base: object = None
    for layer in layers:
        base = _get(layer.values, "model.base", base)
    return base


def _demo_layers(layers: list[Layer]) -> list[Layer]:
    """The demo data set, where no layer names any pictures."""
    if any(_get(layer.values, "dataset.folders", None) for layer in layers):
        return []
    from fluxtune.nano import demo_folder

    return [read_layer(demo_folder() / "dataset.toml", "dataset.toml", "demo data set ({})")]


def _with_data_sets(layers: list[Layer], below: int, lowest: Layer | None) -> tuple[list[Layer], list[Description]]:
    """The layers with what the data sets of the rows that count say of themselves at the place ``below``.

    The rows of the ``lowest`` layer have it already.
    """
    absent = object()
    givers = [rank for rank, layer in enumerate(layers) if _get(layer.values, "dataset.folders", absent) is not absent]
    if not givers or layers[givers[-1]] is lowest:
        return layers, []
    giver = layers[givers[-1]]
    own = os.path.realpath(giver.folder / Path(giver.source).name)

    def find(row: dict[str, Any]) -> Description | None:
        path = _anchored(row["path"], "dataset.folders.path", giver.folder)
        # The settings that the rows stand in may be those of the data set's own folder.
        if path.startswith(EMBEDDED_PREFIX) or os.path.realpath(Path(path) / OWN_FILE) == own:
            return None
        return description_at(Path(path), row["path"])

    spread_out, descriptions = spread(giver, find)
    layers = [*layers[: givers[-1]], spread_out, *layers[givers[-1] + 1 :]]
    return [*layers[:below], *(layer for each in descriptions for layer in each.layers), *layers[below:]], descriptions


def _anchored(value: Any, key: str, folder: Path) -> Any:
    """``value`` with its relative paths made absolute."""
    if isinstance(value, dict):
        return {name: _anchored(inner, f"{key}.{name}" if key else name, folder) for name, inner in value.items()}
    if isinstance(value, list):
        return [_anchored(item, key, folder) for item in value]
    kind = settings()[key].path
    if kind is None or (key == "model.base" and value == EMBEDDED):
        return value
    if key == "dataset.folders.path" and value.startswith(EMBEDDED_PREFIX):
        return value
    if key == "dataset.folders.masks" and value in NO_FOLDERS:
        return value
    # Unlike Path.expanduser, this leaves the home folder of a user who does not exist as it is written.
    path = folder / os.path.expanduser(value)
    if kind == "path or id" and not os.path.exists(path) and not value.startswith((".", "~")):
        return value
    return os.path.abspath(path)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both_tables = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both_tables else value
    return merged


def _rank(layers: list[Layer], key: str) -> int:
    """The number, from 1, of the layer that gives a key its value; 0 for a default."""
    absent = object()
    givers = (rank for rank, layer in enumerate(layers, start=1) if _get(layer.values, key, absent) is not absent)
    return max(givers, default=0)


def _origin(layers: list[Layer], rank: int, key: str) -> str:
    return layers[rank - 1].origin(tuple(key.split("."))) if rank else "default"


def _get(values: dict[str, Any], key: str, default: object) -> Any:
    try:
        return look_up(values, key)
    except KeyError:
        return default


def _nested(parts: list[str], value: object) -> dict[str, Any]:
    """``["training", "steps"], 5`` -> ``{"training": {"steps": 5}}``"""
    nested = value
    for part in reversed(parts):
        nested = {part: nested}
    assert isinstance(nested, dict), "a key has at least one part"
    return nested
