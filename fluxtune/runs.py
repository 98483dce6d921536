"""The run folder: everything a training run leaves behind, and the rules that keep it whole.

    RUN/
      config.toml  origins.json  run.json    resolved settings; where each came from; state of the run
      captions.jsonl                         what each picture was trained with; the last set counts
      lock  events.jsonl  log.txt            all events, for programs, and as the terminal showed them
      checkpoints/step-000500/               NAME.safetensors, state, and a manifest that is written last
      previews/step-000500/00-seed42.png
      tracking/                              what trackers keep
      NAME.safetensors                       the result

A run folder is created exclusively and written by one process at a time; nothing in it is written by halves.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from glob import escape
from pathlib import Path
from shlex import quote
from stat import S_ISDIR, S_ISLNK, S_ISREG
from typing import Any, Literal

from fluxtune import files
from fluxtune.errors import StorageError, UsageError
from fluxtune.events import Event, Step, Warning, as_record
from fluxtune.locks import held
from fluxtune.manifests import MANIFEST
from fluxtune.redaction import for_sharing, redacted
from fluxtune.sentences import log_lines

SCHEMA = 1
TRACKING = "tracking"
STATE_COPY = "state/run.json"
"""Within a checkpoint: ``run.json`` as it was then, from which a lost one is made again."""
ABANDONED = "abandoned-step-"
"""Begins the names of checkpoints that the run turned back from, which go when the next one is whole."""
_AT_FIRST = {
    *("config.toml", "origins.json", "run.json", "captions.jsonl", "lock", "events.jsonl", "log.txt"),
    *(TRACKING, "previews", "previews/step-000000"),
}
"""What is in a run folder before the first step, with all that lies in ``tracking`` and the folder of pictures."""
_LEFT_OVER = re.compile(r"\.[0-9a-f]{8}\.\d+\.partial|\.(abandoned-)?step-\d+\.(partial|dropped)")
"""Names of what a killed process was writing or removing."""


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
    """One run folder; make it with ``Run.create`` or ``Run.open``.

    ``trouble`` is what its user should know of how it was found; ``has_stepped``, whether it was told of a step.
    """

    def __init__(self, folder: Path, state: RunState, trouble: Warning | None = None) -> None:
        self.folder = folder
        self.state = state
        self.trouble = trouble
        self.has_stepped = False
        self._events = files.PatientLines(folder / "events.jsonl")
        self._log = files.PatientLines(folder / "log.txt")

    @classmethod
    def create(
        cls,
        folder: Path,
        config_toml: str,
        origins: dict[str, str],
        facts: dict[str, Any],
        accepted: Iterable[str] = (),
    ) -> Run:
        """Make a new run folder with its resolved configuration, complete or not at all.

        Args:
            folder: must not exist yet.
            config_toml: the resolved configuration, complete.
            origins: for each dotted setting, where its value came from.
            facts, accepted: kept in ``run.json``, see ``RunState``.

        Raises:
            StorageError: the folder exists or cannot be made.
        """
        state = RunState(facts=facts, accepted=sorted(accepted), created=_now(), updated=_now())
        try:
            require_unused(folder)
            with files.whole_folder(folder) as half_made:
                _write_settings(half_made, config_toml, origins)
                files.write_sealed(half_made / "run.json", asdict(state))
                require_unused(folder)
        except StorageError as error:
            require_unused(folder)
            raise StorageError(
                f"cannot make the run folder: {error.message}", where=str(folder), hint=error.hint
            ) from error.__cause__
        _clear_half_made(folder)
        return cls(folder, state)

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open an existing run folder to read it or to go on with it.

        A ``run.json`` that is lost or damaged is made again from its copy in a checkpoint; ``trouble`` says so then.

        Raises:
            UsageError: it is not a run folder.
            StorageError: it cannot be read, or a newer fluxtune wrote it.
        """
        path = folder / "run.json"
        with files.storage_errors(folder):
            if not _is_run(folder):
                seen = "holds no run.json" if folder.is_dir() else "does not exist"
                raise UsageError(
                    f"not a run folder: it {seen}",
                    where=str(folder),
                    hint="give the folder that `fluxtune train` made (it holds config.toml and run.json)",
                )
            try:
                return cls(folder, _read_state(path))
            except FileNotFoundError:
                damage = "run.json is missing"
            except ValueError as error:
                damage = f"run.json is damaged: {error}"
        return cls._rebuilt(folder, damage)

    @classmethod
    def _rebuilt(cls, folder: Path, damage: str) -> Run:
        run = cls(folder, RunState(created=_now()))
        for checkpoint in reversed(run.checkpoints()):
            with suppress(ValueError, OSError):
                run.state = _read_state(checkpoint / STATE_COPY)
                break
        if newest := run.checkpoints()[-1:]:
            run.state = replace(run.state, status="running", step=step_of(newest[0]), checkpoint=run.within(newest[0]))
        run.trouble = Warning(
            f"{damage}; it is made again from the checkpoints, of which there are {len(run.checkpoints())}",
            str(folder / "run.json"),
        )
        return run

    def update(self, **changes: Any) -> None:
        """Change fields of ``state`` and write ``run.json``.

        Raises:
            StorageError: it cannot be written, or the run folder is gone.
        """
        self.require_there()
        self.state = replace(self.state, updated=_now(), **changes)
        files.write_sealed(self.folder / "run.json", asdict(self.state))

    def go_on(self, config_toml: str, origins: dict[str, str], accepted: Iterable[str] = ()) -> None:
        """Take the run up again with these settings: it is running, and has no result any more.

        What is accepted is written first, so that one that is killed meanwhile goes on without asking for it again.
        """
        self.update(status="running", result=None, accepted=sorted(accepted))
        _write_settings(self.folder, config_toml, origins)

    def append(self, event: Event, record: dict[str, Any] | None = None) -> Warning | None:
        """Add an event to ``events.jsonl``, and what people read of it to ``log.txt``; people pass these files on.

        What cannot be written waits for the next time. Returns what the user should know of that, once.

        Args:
            record: of an event of an earlier time, as it was recorded then.

        Raises:
            StorageError: the run folder is gone.
        """
        self.has_stepped |= isinstance(event, Step)
        record = redacted(record or as_record(event), for_sharing)
        # In ASCII, so that no control character of a caption reaches the terminal that shows the file.
        errors = [self._events.add(json.dumps(record))]
        if lines := log_lines(event):
            errors.append(self._log.add("\n".join(f"{record['time']} {for_sharing(line)}" for line in lines)))
        if not any(errors):
            return None
        self.require_there()
        error = next(filter(None, errors))
        return Warning(
            f"the run goes on without its record: {error.message}; what is missed is added later", error.where
        )

    def withdraw(self) -> bool:
        """Remove the folder of a run that was refused, so that another one can be made in its place.

        One in which a step was made, or that holds anything which a run does not begin with, stays.

        Returns:
            Whether it is gone.
        """
        aside = self.folder.with_name(f".{self.folder.name}.{os.getpid() % 10**8:08d}.partial")
        try:
            places = filter(Path.is_dir, (self.folder, self.folder / "previews"))
            found = {self.within(path) for place in places for path in place.iterdir()}
            if self.has_stepped or not found <= _AT_FIRST:
                return False
            os.replace(self.folder, aside)
        except OSError:
            return False
        shutil.rmtree(aside, ignore_errors=True)
        return True

    def require_there(self) -> None:
        """Refuse to write into a run folder that is gone, rather than make another one in its place.

        Raises:
            StorageError: it is gone.
        """
        with files.storage_errors(self.folder):
            if not self.config_path.exists():
                raise StorageError(
                    "the run folder is gone: it was deleted, moved or renamed, or its disk was taken away",
                    where=str(self.folder),
                    hint="bring it back, or go on with it where it is now: fluxtune train --resume FOLDER",
                )

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
        """Folders of the whole checkpoints (those whose manifest is written), newest last.

        Raises:
            StorageError: the folder with the checkpoints cannot be read.
        """
        with files.storage_errors(self.folder / "checkpoints"):
            return [folder for folder in self.checkpoint_folders() if (folder / MANIFEST).is_file()]

    def checkpoint_folders(self, prefix: str = "step-") -> list[Path]:
        """As ``checkpoints``, with those that lost their manifest; or of other names, such as ``ABANDONED``."""
        place = self.folder / "checkpoints"
        names: list[str] = []
        with files.storage_errors(place), suppress(FileNotFoundError):
            names = os.listdir(place)
        steps = {place / name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        return sorted((folder for folder, step in steps.items() if step.isdecimal()), key=step_of)

    def within(self, path: Path) -> str:
        """A path inside the run folder, as ``run.json`` has it."""
        return path.relative_to(self.folder).as_posix()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for writing; a lock left behind by a process that died is taken over, and what it was writing
        or removing when it died is cleared away.

        Raises:
            StorageError: another process is writing this run, a link in it leads out of it, it holds a pipe, or its
                name is no text.
        """
        _require_text_name(self.folder)
        _require_no_way_out(self.folder)
        with held(self.folder / "lock", "run"):
            _clear_left_over(self.folder)
            yield


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's folder is named for."""
    return int(checkpoint.name.rpartition("-")[2])


def _require_no_way_out(folder: Path) -> None:
    """Refuse a run folder with a link that leads out of it, for what is written there would be written elsewhere, or
    with what is neither file nor folder."""

    def refuse(error: OSError) -> None:
        raise error

    with files.storage_errors(folder):
        inside = folder.resolve()
        for place, folders, names in os.walk(folder, onerror=refuse):
            for path in (Path(place, name) for name in (*folders, *names)):
                try:
                    mode = path.lstat().st_mode
                except FileNotFoundError:  # whoever holds the lock writes and removes meanwhile
                    continue
                if S_ISLNK(mode) and not path.resolve().is_relative_to(inside):
                    raise StorageError(
                        "a link in the run folder leads out of it, and a run writes nowhere else",
                        where=str(path),
                        hint="put the file or folder itself in its place",
                    )
                if not (S_ISREG(mode) or S_ISDIR(mode) or S_ISLNK(mode)):
                    raise StorageError(
                        "this is a pipe, a device or a socket, and a run is written to files alone",
                        where=str(path),
                        hint="remove it",
                    )
            # Trackers link to their own logs in there.
            folders[:] = [name for name in folders if Path(place, name) != folder / TRACKING]


def _clear_half_made(folder: Path) -> None:
    """Remove what killed processes left of a folder of this name; now that it exists, nobody is making it any more."""
    with suppress(OSError):
        for left in folder.absolute().parent.glob(f".{escape(folder.name)}.????????.partial"):
            shutil.rmtree(left, ignore_errors=True)


def _clear_left_over(folder: Path) -> None:
    for place, folders, names in os.walk(folder):
        for name in filter(_LEFT_OVER.fullmatch, folders):
            shutil.rmtree(Path(place, name), ignore_errors=True)
        for name in filter(_LEFT_OVER.fullmatch, names):
            with suppress(OSError):
                Path(place, name).unlink()


def require_unused(folder: Path) -> None:
    """Refuse a run folder that exists, or whose name is none for a LoRA, before the work that would end in it.

    Raises:
        StorageError: so it is.
    """
    # A link that leads nowhere is in the way too.
    if os.path.lexists(folder):
        other = "choose another --output"
        if _is_run(folder):
            other = f"go on with that run: fluxtune train --resume {quote(str(folder))}; or {other}"
        raise StorageError(
            "the run folder exists already, and a run never writes over another one", where=str(folder), hint=other
        )
    _require_text_name(folder)


def _is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file() or (folder / "config.toml").is_file()


def _require_text_name(folder: Path) -> None:
    """Refuse a run folder whose name cannot be that of a LoRA, nor be written into its file."""
    name = folder.resolve().name
    if not name.isprintable():
        raise StorageError(
            "the name of the run folder is no text: it holds control characters or is no UTF-8",
            where=os.fsencode(folder).decode("utf-8", "replace"),
            hint="give it another name",
        )


def latest_run(under: Path) -> Path:
    """The run folder directly inside ``under`` that was written last.

    Raises:
        UsageError: there is none.
    """
    states = [path for path in under.glob("*/run.json") if not path.parent.name.startswith(".")]
    if not states:
        raise UsageError(
            "no run folders here",
            where=str(under),
            hint="give the run folder's path: fluxtune train --resume RUN",
        )
    return max(states, key=lambda path: path.stat().st_mtime_ns).parent


def lora_in(named: Path) -> Path:
    """The LoRA that a file, a run folder, or the folder of one of its checkpoints stands for.

    Raises:
        UsageError: it is a folder, and none of a run.
        StorageError: the run has no result yet.
    """
    if not named.is_dir():
        return named
    if (named / MANIFEST).is_file() and (kept := sorted(named.glob("*.safetensors"))):
        return kept[0]
    run = Run.open(named)
    if run.state.result is None:
        last = "".join(f"; its last checkpoint is in {each}" for each in run.checkpoints()[-1:])
        raise StorageError(
            f"this run has no result yet{last}",
            where=str(named),
            hint=f"finish it: fluxtune train --resume {quote(str(named))}",
        )
    return named / run.state.result


def _write_settings(folder: Path, config_toml: str, origins: dict[str, str]) -> None:
    files.write_text(folder / "config.toml", config_toml)
    files.write_json(folder / "origins.json", redacted(origins, for_sharing))


def _read_state(path: Path) -> RunState:
    """Raises ValueError where it is damaged, FileNotFoundError where there is none."""
    if not path.is_file():
        raise FileNotFoundError(path)
    record = files.read_sealed(path)
    if record.get("schema") != SCHEMA:
        raise StorageError(
            f"written by another fluxtune: run folders of schema {record.get('schema')}, this one reads {SCHEMA}",
            where=str(path),
            hint="use the fluxtune version that made the run",
        )
    try:
        return RunState(**record)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
