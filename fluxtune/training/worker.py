"""What a process does that is not the main one of its run: it takes its share of every step, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from fluxtune.config.schema import Config
from fluxtune.dataset.pictures import Picture
from fluxtune.errors import ExitCode, FluxtuneError, Stopped
from fluxtune.events import ignore
from fluxtune.flux.base import base_in
from fluxtune.flux.weights import DTYPES
from fluxtune.memory.shortage import fits_in_memory
from fluxtune.training.checkpoint import Counters, load_checkpoint
from fluxtune.training.health import Health
from fluxtune.training.load import load
from fluxtune.training.loop import train_steps
from fluxtune.training.preflight import Preflight
from fluxtune.training.prepare import prepare
from fluxtune.training.processes import Processes, Told, joined
from fluxtune.training.relief import no_room
from fluxtune.training.saved_state import Memory, knows_beginning

_LESS = "other programs may hold memory on its card; or take a smaller preset, or --set memory.recompute=all"


@dataclass(frozen=True)
class Task:
    """What the main process hands out once the caches hold everything.

    Attributes:
        ready: with the settings as they are trained with.
        checkpoint: what the run goes on from, if from any.
        file: where the result will be.
    """

    ready: Preflight
    checkpoint: Path | None
    file: Path

    def as_json(self) -> dict[str, Any]:
        """The task as it is handed out."""
        ready, base = self.ready, self.ready.base
        return {
            "config": ready.config.model_dump(mode="json"),
            "base": {
                "name": base.name,
                "folder": str(base.folder),
                "files": {part: str(file) for part, file in base.files.items()},
            },
            "device": ready.device,
            "pictures": _PICTURES.dump_python(ready.pictures, mode="json"),
            "preview_prompts": ready.preview_prompts,
            "prompts": ready.prompts,
            "checkpoint": None if self.checkpoint is None else str(self.checkpoint),
            "file": str(self.file),
        }

    @classmethod
    def of(cls, data: dict[str, Any]) -> Task:
        """The task that was handed out."""
        base = base_in(Path(data["base"]["folder"]), data["base"]["name"])
        files = {part: Path(file) for part, file in data["base"]["files"].items()}
        ready = Preflight(
            config=Config.model_validate(data["config"]),
            plan=None,
            base=replace(base, files=files),
            device=data["device"],
            pictures=_PICTURES.validate_python(data["pictures"]),
            preview_prompts=data["preview_prompts"],
            prompts=data["prompts"],
            facts={},
            accepted=frozenset(),
        )
        return cls(ready, Path(data["checkpoint"]) if data["checkpoint"] else None, Path(data["file"]))


_PICTURES = TypeAdapter(list[Picture])


def work_along(should_stop: Callable[[], ExitCode | None]) -> None:
    """Works for the main process of this run, to its end.

    Raises:
        Exception: a bug. Everything else the main process is told, and says.
    """
    with suppress(FluxtuneError, Told), joined() as processes:
        take_part(processes, should_stop)


def take_part(processes: Processes, should_stop: Callable[[], ExitCode | None]) -> Task:
    """Waits for the task, and does its share of it.

    Raises:
        FluxtuneError: as in the main process.
        Told: another process failed.
    """
    try:
        with fits_in_memory("this training", _LESS):
            return _take_part(processes, should_stop)
    except KeyboardInterrupt:
        raise Stopped("interrupted", should_stop() or ExitCode.INTERRUPTED) from None


def _take_part(processes: Processes, should_stop: Callable[[], ExitCode | None]) -> Task:
    task = Task.of(processes.hand_out())
    ready, config = task.ready, task.ready.config
    training = config.training
    prepared = prepare(
        config, ready.base, ready.pictures, ready.prompts, DTYPES[training.precision], ready.device, ignore
    )
    loaded = load(config, ready.base, prepared, ready.device, ignore, goes_on=task.checkpoint is not None)
    counters: Counters = {}
    memory = Memory(loaded, counters, knows_beginning(config, task.checkpoint is not None))
    first_step = 0
    if task.checkpoint is not None:
        optimizer = loaded.learner.optimizer.optimizer
        first_step, saved = load_checkpoint(task.checkpoint, loaded.parameters, optimizer, loaded.average)
        counters.update(saved)

    def restore(latest: int) -> int:
        folder = processes.hand_out()
        return memory.put_back(Path(folder) if folder else None)

    train_steps(
        training,
        loaded.learner,
        loaded.source,
        loaded.average,
        first_step,
        Health(training, loaded.source.pictures, restore, counters, ignore),
        no_room,
        lambda step: None,
        should_stop,
        ignore,
        processes,
    )
    return task
