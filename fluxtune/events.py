"""What a service can report while it works: the typed vocabulary of progress.

Services emit events into a sink; the command line renders them for people or writes them as JSON lines, and a run's
``events.jsonl`` is the same stream. ``as_record`` gives the one JSON form of an event.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeAlias

from fluxtune.errors import ConfigError, FluxtuneError
from fluxtune.redaction import redacted, without_tokens

SCHEMA = 1


@dataclass(frozen=True)
class RunStarted:
    """A run folder was opened. ``config`` is the resolved configuration."""

    event: ClassVar[str] = "run_started"
    run: str
    base: str
    steps: int
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    """A new phase began, for instance ``load`` or ``train``; ``detail`` is a sentence for people."""

    event: ClassVar[str] = "phase"
    name: str
    detail: str = ""


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` items of countable work (pictures encoded, files hashed, denoising steps)."""

    event: ClassVar[str] = "progress"
    task: str
    done: int
    total: int
    unit: str = "items"
    rate: float | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class Step:
    """One optimizer step. ``rate`` is steps a second; ``memory`` is GiB in use (device peak, or process on CPU).

    ``skipped`` of the steps so far were skipped, because their loss or gradients were not finite.
    """

    event: ClassVar[str] = "step"
    step: int
    total: int
    loss: float
    learning_rate: float
    grad_norm: float
    rate: float
    seconds_left: float
    memory: float
    epoch: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Preview:
    """A preview picture was written."""

    event: ClassVar[str] = "preview"
    step: int
    prompt: str
    seed: int
    path: str


@dataclass(frozen=True)
class Picture:
    """``fluxtune sample`` wrote a picture, or a grid of pictures, which has neither prompt nor seed."""

    event: ClassVar[str] = "picture"
    path: str
    prompt: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint is whole on disk. Writing it took ``seconds``; 0 where the process that wrote it was killed then."""

    event: ClassVar[str] = "checkpoint"
    step: int
    path: str
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Warning:
    """Something the user should know that does not stop the work."""

    event: ClassVar[str] = "warning"
    message: str
    where: str | None = None
    hint: str | None = None


@dataclass(frozen=True)
class Finding:
    """One thing that was found in a data set, or on this machine.

    Attributes:
        severity: ``error``, ``warning`` or ``note``; of a machine also ``ok``, for what was looked at and is well.
        check: name of the check that found it; names stay the same from version to version.
        where: the file, with its line where that helps.
        picture: name of the picture that it is about, if it is about one.
    """

    event: ClassVar[str] = "finding"
    severity: str
    check: str
    message: str
    where: str | None = None
    hint: str | None = None
    picture: str | None = None


@dataclass(frozen=True)
class Caption:
    """A picture was captioned.

    Attributes:
        picture: the picture's name.
        file: where the caption stands, or would.
        written: whether it was; under ``--dry-run`` it is only proposed.
    """

    event: ClassVar[str] = "caption"
    picture: str
    file: str
    caption: str
    written: bool


@dataclass(frozen=True)
class Plan:
    """How a run will use memory.

    Attributes:
        summary: for people.
        memory: the settings of ``[memory]``, decided.
        fits: whether ``capacity`` suffices.
        capacity: bytes that the run may take of the card; None where nothing limits it.
        reserved: bytes that the card must have.
        phases: for each phase its name, its peak in bytes by category (``alive``) and what it reserves.
        system: bytes of system memory that are held, by what holds them.
        recomputed: operations that the backward computes a second time, as a share of the forward.
    """

    event: ClassVar[str] = "plan"
    summary: str
    memory: dict[str, Any]
    fits: bool
    capacity: int | None
    reserved: int
    phases: list[dict[str, Any]]
    system: dict[str, int]
    recomputed: float


@dataclass(frozen=True)
class Resumed:
    """A run goes on from a checkpoint."""

    event: ClassVar[str] = "resumed"
    step: int
    path: str


@dataclass(frozen=True)
class RolledBack:
    """A run went back to a state that was saved, and trains from there again: of steps told twice, the later counts.

    Attributes:
        step: steps done in that state.
        path: its checkpoint; None for the beginning of the run.
        learning_rate_factor: what the learning rate is multiplied by from now on.
    """

    event: ClassVar[str] = "rolled_back"
    step: int
    path: str | None
    learning_rate_factor: float


@dataclass(frozen=True)
class Result:
    """The last event of work that succeeded: the report, plan, file or pictures made."""

    event: ClassVar[str] = "result"
    command: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Error:
    """The last event of work that failed."""

    event: ClassVar[str] = "error"
    code: int
    message: str
    where: str | None = None
    hint: str | None = None
    problems: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, error: FluxtuneError) -> Error:
        """The event that tells of an error, with all its problems."""
        problems = error.problems if isinstance(error, ConfigError) else [error]
        rows = [{"message": each.message, "where": each.where, "hint": each.hint} for each in problems]
        told = problems[0] if len(problems) == 1 else error
        return cls(int(error.exit_code), told.message, told.where, told.hint, rows)


Event: TypeAlias = (
    RunStarted
    | Phase
    | Progress
    | Step
    | Preview
    | Picture
    | Checkpoint
    | Warning
    | Finding
    | Caption
    | Plan
    | Resumed
    | RolledBack
    | Result
    | Error
)
Sink: TypeAlias = Callable[[Event], None]


def as_record(event: Event) -> dict[str, Any]:
    """The event as the JSON object that scripts read: schema, name, time (ISO 8601, UTC), then its fields, in which no
    token is shown."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    # JSON has no infinities and no NaN.
    fields = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(event).items()
    }
    return {"schema": SCHEMA, "event": event.event, "time": now, **redacted(fields, without_tokens)}


def ignore(event: Event) -> None:
    """A sink for callers that do not want events."""
