"""The settings of `fluxtune sample`: below yours those of the run that made a LoRA, or the base that the LoRA names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fluxtune.config.documents import Layer, parse_key, read_layer
from fluxtune.config.layers import Resolved, resolve

# All of a section where no names are given. The folders say that the run had pictures, and no demo data set with
# preview prompts of its own. The rest would only let settings contradict each other that no picture depends on.
_READ: dict[str, tuple[str, ...]] = {
    "model": (),
    "memory": (),
    "previews": (),
    "sampling": (),
    "dataset": ("folders", "resolution"),
    "training": ("precision", "device"),
}


@dataclass(frozen=True)
class Given:
    """The layers of settings that the command line names."""

    preset: str | None
    config_file: Path | None
    flags: dict[str, tuple[str, object]]
    sets: list[str]

    @property
    def named(self) -> dict[str, str]:
        """The settings that the command line gives, by dotted key, and what gives each: a flag or ``--set``."""
        keys = (parse_key(text.partition("=")[0].strip()) for text in self.sets)
        by_set = {".".join(parts): "--set" for parts in keys if parts is not None}
        return {**by_set, **{key: flag for key, (flag, _) in self.flags.items()}}


def resolved(given: Given, loras: Sequence[Path]) -> Resolved:
    """The settings, with those that come along with LoRAs below them.

    Raises:
        ConfigError: with every mistake of every layer.
    """
    run = next((run for path in loras if (run := run_around(path))), None)
    found = _resolve(given, None if run is None else _settings_of(run))
    if found.origins["model.base"] != "default" or not loras:
        return found
    from fluxtune.sampling.loras import base_of

    named = next((base for path in loras if (base := base_of(path))), None)
    return found if named is None else _resolve(given, Layer("--lora", {"model": {"base": named}}, Path.cwd()))


def run_around(path: Path) -> Path | None:
    """The run folder that a result or a checkpoint's file lies in."""
    return next((folder for folder in list(path.parents)[:3] if (folder / "run.json").is_file()), None)


def _resolve(given: Given, lowest: Layer | None) -> Resolved:
    return resolve(
        preset=given.preset,
        config_file=given.config_file,
        flags=given.flags,
        sets=given.sets,
        working_folder=Path.cwd(),
        lowest=lowest,
        data_sets=False,
    )


def _settings_of(run: Path) -> Layer:
    """What sampling reads of the settings of a run, as a layer."""
    file = run / "config.toml"
    whole = read_layer(file, str(file))
    values = {section: table for section, table in whole.values.items() if section in _READ}
    for section, names in _READ.items():
        if names and isinstance(table := values.get(section), dict):
            values[section] = {name: value for name, value in table.items() if name in names}
    return replace(whole, values=values)
