"""Going on with a run: its own settings, what may differ from them now, and what a kill kept it from recording.

Nothing here loads a library that computes, so that a refusal comes at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any

from fluxtune.config.documents import read_layer
from fluxtune.config.layers import EMBEDDED_PREFIX, Resolved
from fluxtune.config.problems import problems_of
from fluxtune.config.resuming import Change, Changed, changed_settings
from fluxtune.config.schema import Config
from fluxtune.config.settings import defaults
from fluxtune.errors import ConfigError, DataError, StorageError, UsageError, some_names
from fluxtune.events import Checkpoint, Preview, Result, RolledBack, Warning
from fluxtune.files import json_lines, sha256_of
from fluxtune.manifests import is_whole
from fluxtune.runs import Run, step_of


def settings_of(run: Path) -> Resolved:
    """The settings that a run has, each with where it first came from.

    Raises:
        UsageError: it is not a run folder, or its ``config.toml`` was damaged.
        StorageError: its record of where settings came from was damaged.
    """
    file = run / "config.toml"
    if not file.is_file():
        within = next((quote(str(each)) for each in run.parents if (each / "config.toml").is_file()), None)
        raise UsageError(
            "not a run folder: it has no config.toml" if run.exists() else "there is no such folder",
            where=str(run),
            hint=f"give {within or 'the folder that `fluxtune train` made'}, or --resume latest",
        )
    layer = read_layer(file, str(file))
    if problems := problems_of(layer):
        raise ConfigError(problems)
    first = _first_origins(run / "origins.json")
    origins = {key: first.get(key, layer.origin(tuple(key.split(".")))) for key in defaults()}
    return Resolved(Config.model_validate(layer.values), origins)


def require_resumable(run: Run, was: Config, now: Config, origins: dict[str, str]) -> None:
    """Refuse at once what the run cannot go on with; nothing is changed by that.

    Args:
        was: the settings that the run has.
        origins: where those of ``now`` come from, complete.

    Raises:
        UsageError: settings changed that may not, all of them named; or more steps are done than are wanted.
        DataError: a folder of pictures is not there any more.
    """
    fixed = [change for change in changed_settings(was, now) if change.change is Change.FIXED]
    if fixed:
        lines = "".join(f"\n  {change} ({origins[change.key]})" for change in fixed)
        raise UsageError(
            f"{_count(len(fixed), 'setting')} cannot change while a run goes on:{lines}",
            where=str(run.folder),
            hint="leave them out, or start a new run without --resume",
        )
    too_far = [folder for folder in run.checkpoints() if step_of(folder) > now.training.steps]
    if newest := next(filter(is_whole, reversed(too_far)), None):
        done = step_of(newest)
        raise UsageError(
            f"training.steps is {now.training.steps}, and this run has done {done} steps already",
            where=str(run.folder),
            hint=f"give --steps {done} or more; {newest} holds the LoRA as it is",
        )
    gone = [row.path for row in now.dataset.folders if not _is_there(row.path)]
    if gone:
        raise DataError(
            f"the pictures of this run are not there any more: no folder {some_names(gone)}",
            where=str(run.folder),
            hint=f"put them back; or say where they are now: fluxtune train FOLDER --resume {quote(str(run.folder))}",
            check="no-folder",
        )


def warnings_of(was: Config, now: Config) -> Iterator[Warning]:
    """What is to be said of changed settings that are allowed and tell in the numbers."""
    for change in changed_settings(was, now):
        if change.change is Change.TOLD:
            yield Warning(f"{change}: from here on the run is not quite what it would have been", where=change.key)


def of_the_data(was: Config, now: Config) -> list[Changed]:
    """The changed settings that go with the data set."""
    return [change for change in changed_settings(was, now) if change.change is Change.DATA]


def finished_result(run: Run, was: Config, now: Config) -> dict[str, Any] | None:
    """The result of a run that is finished, as it was told then; None where something is left to do.

    That is so where a setting changed, or the file is not there any more, or another one.
    """
    state = run.state
    if state.status != "finished" or state.result is None or list(changed_settings(was, now)):
        return None
    file = run.folder / state.result
    results = [row["data"] for row in json_lines(run.folder / "events.jsonl") if row.get("event") == Result.event]
    if not (results and file.is_file() and sha256_of(file) == results[-1]["sha256"]):
        return None
    return {**results[-1], "run": str(run.folder), "file": str(file)}


def told_checkpoints(run: Run) -> set[int]:
    """The steps whose checkpoints the run has recorded, since it last went back."""
    return {row["step"] for row in _recorded(run, Checkpoint.event)}


def told_previews(run: Run, step: int) -> set[tuple[str, int]]:
    """Prompt and seed of the previews of a step that the run has made and recorded."""
    rows = [row for row in _recorded(run, Preview.event) if row["step"] == step]
    return {(row.get("prompt", ""), row.get("seed", 0)) for row in rows}


def rolled_back_to(run: Run) -> list[int]:
    """The steps that the run has gone back to, in order."""
    return [row["step"] for row in json_lines(run.folder / "events.jsonl") if row.get("event") == RolledBack.event]


def _recorded(run: Run, event: str) -> list[dict[str, Any]]:
    """The records of a kind; those of steps that the run went back before are of what it abandoned."""
    found: list[dict[str, Any]] = []
    for row in json_lines(run.folder / "events.jsonl"):
        if not isinstance(row.get("step"), int):
            continue
        if row.get("event") == RolledBack.event:
            found = [each for each in found if each["step"] <= row["step"]]
        elif row.get("event") == event:
            found.append(row)
    return found


def _first_origins(file: Path) -> dict[str, str]:
    """Where the settings of a run first came from, as far as that is recorded."""
    if not file.is_file():
        return {}
    try:
        return {key: str(origin) for key, origin in json.loads(file.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise StorageError(
            f"damaged record of where settings came from: {error}",
            where=str(file),
            hint="remove the file: the run goes on without that record",
        ) from error


def _is_there(pictures: str) -> bool:
    return pictures.startswith(EMBEDDED_PREFIX) or os.path.isdir(os.path.expanduser(pictures))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
