"""The run folder: everything a training run leaves behind, and the rules that keep it whole.

    RUN/
      config.toml  origins.json  run.json    resolved settings; where each came from; state of the run
      lock  events.jsonl  log.txt
      checkpoints/step-000500/               NAME.safetensors, state, and a manifest that is written last
      previews/step-000500/00-seed42.png
      NAME.safetensors                       the result

A run folder is created exclusively and written by one process at a time; nothing in it is written by halves.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from fluxtune import files
from fluxtune.errors import StorageError
from fluxtune.events import Event, as_record

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
        created, updated: ISO 8601, UTC.
    """

    schema: int = SCHEMA
    status: Literal["running", "finished", "stopped", "failed"] = "running"
    step: int = 0
    checkpoint: str | None = None
    result: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    updated: str = ""


class Run:
    """One run folder; make it with ``Run.create`` or ``Run.open``."""

    def __init__(self, folder: Path, state: RunState) -> None:
        self.folder = folder
        self.state = state

    @classmethod
    def create(cls, folder: Path, config_toml: str, origins: dict[str, str], facts: dict[str, Any]) -> Run:
        """Make a new run folder with its resolved configuration.

        Args:
            folder: must not exist yet.
            config_toml: the resolved configuration, complete.
            origins: for each dotted setting, where its value came from.
            facts: kept in ``run.json`` for the reader of the run.

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
        run = cls(folder, RunState(facts=facts, created=_now()))
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

    def go_on(self, config_toml: str, origins: dict[str, str]) -> None:
        """Take the run up again with these settings: it is running, and has no result any more."""
        self._write_settings(config_toml, origins)
        self.update(status="running", result=None)

    def append(self, event: Event) -> None:
        """Add an event to ``events.jsonl``, and a line for people to ``log.txt``."""
        record = as_record(event)
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

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for writing; a lock left behind by a process that died is taken over.

        Raises:
            StorageError: another process is writing this run.
        """
        lock = self.folder / "lock"
        owner = _take(lock)
        try:
            yield
        finally:
            if _read_owner(lock) == owner:
                lock.unlink()

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


def _take(lock: Path) -> dict[str, Any]:
    """Create the lock file with our identity, clearing away a stale one; returns the identity."""
    owner = _identity()
    while True:
        try:
            with open(lock, "x", encoding="utf-8") as file:
                file.write(json.dumps(owner))
            return owner
        except FileExistsError:
            _clear_if_stale(lock)
        except OSError as error:
            raise StorageError(f"cannot lock the run: {error.strerror or error}", where=str(lock)) from error


def _clear_if_stale(lock: Path) -> None:
    """Remove the lock of a process that is gone; raises StorageError when its holder may still write."""
    holder = _read_owner(lock)
    if holder is None:
        return
    if holder["host"] != socket.gethostname():
        raise StorageError(
            f"locked by process {holder['pid']} on another machine, {holder['host']}",
            where=str(lock),
            hint="wait for it; if nothing trains there any more, remove the lock file",
        )
    if _alive(holder):
        raise StorageError(
            f"this run is being written by process {holder['pid']}",
            where=str(lock),
            hint="wait until it ends, or stop it",
        )
    # Renaming lets only one of several waiting processes clear the lock away.
    aside = lock.with_name(f".lock.stale.{os.getpid()}")
    try:
        os.replace(lock, aside)
    except FileNotFoundError:
        return
    if _read_owner(aside) == holder:
        aside.unlink()
    else:
        os.replace(aside, lock)


def _read_owner(lock: Path) -> dict[str, Any] | None:
    """Who holds the lock, or None when it is free."""
    try:
        owner = json.loads(lock.read_text(encoding="utf-8"))
        return {key: owner[key] for key in ("pid", "started", "boot", "host")}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        # A crash cut it off while it was written: nobody holds it.
        return {"pid": None, "started": None, "boot": None, "host": socket.gethostname()}


def _identity() -> dict[str, Any]:
    """This process, told apart from a later one with the same number: by its start, and by the boot."""
    return {
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "boot": _boot_id(),
        "host": socket.gethostname(),
    }


def _alive(holder: dict[str, Any]) -> bool:
    started = _started(holder["pid"]) if holder["pid"] else None
    return started is not None and (holder["boot"], holder["started"]) == (_boot_id(), started)


def _boot_id() -> str | None:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.is_file() else None


def _started(pid: int) -> float | None:
    """When a process started (only comparable on one machine), or None when it is gone or a zombie."""
    import psutil

    if _boot_id() is None:
        try:
            return round(psutil.Process(pid).create_time(), 2)
        except psutil.NoSuchProcess:
            return None
    # In ticks since the boot: unlike psutil's clock time, no adjustment of the clock moves it.
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else float(fields[18])
