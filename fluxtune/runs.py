"""The run folder: everything a training run leaves behind, and the rules that keep it whole.

    RUN/
      config.toml  origins.json  run.json    resolved settings; where each came from; state of the run
      captions.jsonl                         what each picture was trained with; the last set counts
      lock  events.jsonl  log.txt
      checkpoints/step-000500/               NAME.safetensors, state, and a manifest that is written last
      previews/step-000500/00-seed42.png
      NAME.safetensors                       the result

A run folder is created exclusively and written by one process at a time; nothing in it is written by halves.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from fluxtune import files
from fluxtune.errors import StorageError
from fluxtune.events import Event, as_record
from fluxtune.locks import held

SCHEMA = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class RunState:
    """What ``run.json`` holds.

    Attributes:
        status: ``running`` also after a crash; a run that nobody holds the lock of is not running.
        step: optimizer steps done.
        checkpoint: last whole checkpoint, relative to the run folder.
        result: the finished LoRA, relative to the run folder.
        facts: what was true when the run began (versions, device, base model).
        accepted: what would have been refused, had its user not accepted it.
        created, updated: ISO 8601, UTC.
    """

    schema: int = SCHEMA
    status: Literal["running", "finished", "stopped", "failed"] = "running"
    step: int = 0
    checkpoint: str | None = None
    result: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    accepted: list[str] = field(default_factory=list)
    created: str = ""
    updated: str = ""


class Run:
    """One run folder; make it with ``Run.create`` or ``Run.open``."""

    def __init__(self, folder: Path, state: RunState) -> None:
        self.folder = folder
        self.state = state

    @classmethod
    def create(
        cls,
        folder: Path,
        config_toml: str,
        origins: dict[str, str],
        facts: dict[str, Any],
        accepted: Iterable[str] = (),
    ) -> Run:
        """Make a new run folder with its resolved configuration.

        Args:
            folder: must not exist yet.
            config_toml: the resolved configuration, complete.
            origins: for each dotted setting, where its value came from.
            facts, accepted: kept in ``run.json``, see ``RunState``.

        Raises:
            StorageError: the folder exists or cannot be made.
        """
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            require_unused(folder)
            raise StorageError(
                f"cannot make the run folder: {error.strerror or error}",
                where=str(folder),
                hint="check that you may write there, or choose another --output",
            ) from error
        run = cls(folder, RunState(facts=facts, accepted=sorted(accepted), created=_now()))
        run._write_settings(config_toml, origins)
        run.update()
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open an existing run folder to read it or to go on with it.

        Raises:
            StorageError: it is not a run folder, is damaged, or a newer fluxtune wrote it.
        """
        path = folder / "run.json"
        if not path.is_file():
            seen = "holds no run.json" if folder.is_dir() else "does not exist"
            raise StorageError(
                f"not a run folder: it {seen}",
                where=str(folder),
                hint="give the folder that `fluxtune train` made (it holds config.toml and run.json)",
            )
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            schema = record["schema"]
            state = RunState(**record) if schema == SCHEMA else None
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"damaged run.json: {error}", where=str(path)) from error
        if state is None:
            raise StorageError(
                f"written by another fluxtune: run folders of schema {schema}, this one reads {SCHEMA}",
                where=str(path),
                hint="use the fluxtune version that made the run",
            )
        return cls(folder, state)

    def update(self, **changes: Any) -> None:
        """Change fields of ``state`` and write ``run.json``."""
        self.state = replace(self.state, updated=_now(), **changes)
        files.write_json(self.folder / "run.json", asdict(self.state))

    def go_on(self, config_toml: str, origins: dict[str, str], accepted: Iterable[str] = ()) -> None:
        """Take the run up again with these settings: it is running, and has no result any more."""
        self._write_settings(config_toml, origins)
        self.update(status="running", result=None, accepted=sorted(accepted))

    def append(self, event: Event) -> None:
        """Add an event to ``events.jsonl``, and a line for people to ``log.txt``."""
        self.append_record(as_record(event))

    def append_record(self, record: dict[str, Any]) -> None:
        """Add an event of an earlier time, as it was recorded then."""
        files.append_line(self.folder / "events.jsonl", json.dumps(record, ensure_ascii=False))
        files.append_line(self.folder / "log.txt", _log_line(record))

    @property
    def config_path(self) -> Path:
        """The resolved configuration, as TOML."""
        return self.folder / "config.toml"

    def checkpoint_folder(self, step: int) -> Path:
        """Where the checkpoint of ``step`` goes."""
        return self.folder / "checkpoints" / f"step-{step:06d}"

    def preview_path(self, step: int, index: int, seed: int) -> Path:
        """Where the preview of prompt number ``index`` goes."""
        return self.folder / "previews" / f"step-{step:06d}" / f"{index:02d}-seed{seed}.png"

    def result_path(self, name: str) -> Path:
        """Where the finished LoRA goes."""
        return self.folder / f"{name}.safetensors"

    def checkpoints(self) -> list[Path]:
        """Folders of the whole checkpoints (those whose manifest is written), newest last."""
        folders = (self.folder / "checkpoints").glob("step-*")
        steps = {folder: folder.name.removeprefix("step-") for folder in folders if (folder / MANIFEST).is_file()}
        return sorted((folder for folder in steps if steps[folder].isdecimal()), key=lambda folder: int(steps[folder]))

    def locked(self) -> AbstractContextManager[None]:
        """Hold the run for writing; a lock left behind by a process that died is taken over.

        Raises:
            StorageError: another process is writing this run.
        """
        return held(self.folder / "lock", "run")

    def _write_settings(self, config_toml: str, origins: dict[str, str]) -> None:
        files.write_text(self.config_path, config_toml)
        files.write_json(self.folder / "origins.json", origins)


def require_unused(folder: Path) -> None:
    """Refuse a run folder that exists, before the work that would end in it.

    Raises:
        StorageError: the folder exists.
    """
    # A link that leads nowhere is in the way too.
    if os.path.lexists(folder):
        raise StorageError(
            "the run folder exists already, and a run never writes over another one",
            where=str(folder),
            hint=f"go on with that run: fluxtune train --resume {quote(str(folder))}; or choose another --output",
        )


def latest_run(under: Path) -> Path:
    """The run folder directly inside ``under`` that was written last.

    Raises:
        StorageError: there is none.
    """
    states = list(under.glob("*/run.json"))
    if not states:
        raise StorageError(
            "no run folders here",
            where=str(under),
            hint="give the run folder's path: fluxtune train --resume RUN",
        )
    return max(states, key=lambda path: path.stat().st_mtime_ns).parent


def write_manifest(folder: Path) -> None:
    """List every file of a checkpoint, with size and SHA-256. Written last, it makes the checkpoint whole."""
    entries = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": files.sha256_of(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    files.write_json(folder / MANIFEST, {"schema": SCHEMA, "files": entries})


def verify_manifest(folder: Path) -> None:
    """Check every file of a checkpoint against its manifest.

    Raises:
        StorageError: names the manifest or file that is missing, cut off or altered.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise StorageError("incomplete checkpoint: it has no manifest", where=str(folder), hint=_OLDER)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"damaged manifest: {error}", where=str(path), hint=_OLDER) from error
    for name, expected in entries:
        file = folder / name
        if not file.is_file():
            raise StorageError("damaged checkpoint: the file is missing", where=str(file), hint=_OLDER)
        size = file.stat().st_size
        if size != expected["size"]:
            seen = f"the file has {size} bytes instead of {expected['size']}"
            raise StorageError(f"damaged checkpoint: {seen}", where=str(file), hint=_OLDER)
        if files.sha256_of(file) != expected["sha256"]:
            raise StorageError("damaged checkpoint: the file's content changed", where=str(file), hint=_OLDER)


_OLDER = "remove this checkpoint's folder to go on from the one before it"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _log_line(record: dict[str, Any]) -> str:
    """An event as one readable line; the configuration stays in config.toml."""
    hidden = ("schema", "event", "time", "config")
    fields = " ".join(f"{name}={_shown(value)}" for name, value in record.items() if name not in hidden)
    return f"{record['time']} {record['event']} {fields}".rstrip()


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
