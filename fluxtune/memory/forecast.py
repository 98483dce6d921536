"""What a run will take in memory, phase by phase: what a simulation found, short enough to show and to keep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fluxtune.memory.ledger import Moment

_POINTS = 400
"""Of a time-line, at most: as wide as it is ever drawn."""


@dataclass(frozen=True)
class PhasePeak:
    """The moment of a phase at which most is alive, in bytes by category; ``reserved`` is the most of the phase."""

    phase: str
    alive: dict[str, int]
    reserved: int

    @property
    def bytes(self) -> int:
        """All categories together."""
        return sum(self.alive.values())


@dataclass(frozen=True)
class Forecast:
    """What a run takes on the card.

    Attributes:
        phases: in the order in which they begin.
        timeline: of a training step: (phase, bytes by category), thinned out so that every peak stays.
        system: bytes of system memory that are held beside what any process needs, by what holds them.
    """

    phases: tuple[PhasePeak, ...]
    timeline: tuple[tuple[str, dict[str, int]], ...] = ()
    system: dict[str, int] | None = None

    @property
    def peak(self) -> PhasePeak:
        """The phase in which most is alive."""
        return max(self.phases, key=lambda phase: phase.bytes)

    @property
    def reserved(self) -> int:
        """Bytes that the card must have for it."""
        return max(max(phase.reserved, phase.bytes) for phase in self.phases)

    def as_record(self) -> dict[str, Any]:
        """As JSON holds it; ``forecast_from`` reads it."""
        return asdict(self)


def forecast_from(record: dict[str, Any]) -> Forecast:
    """What ``as_record`` gave.

    Raises:
        KeyError, TypeError, ValueError: it is no such record.
    """
    return Forecast(
        tuple(PhasePeak(str(each["phase"]), dict(each["alive"]), int(each["reserved"])) for each in record["phases"]),
        tuple((str(phase), dict(alive)) for phase, alive in record["timeline"]),
        record["system"],
    )


def phase_peaks(moments: Iterable[Moment]) -> tuple[PhasePeak, ...]:
    """The peak of each phase, in the order in which they begin."""
    highest: dict[str, Moment] = {}
    reserved: dict[str, int] = {}
    for moment in moments:
        if moment.phase not in highest or moment.bytes > highest[moment.phase].bytes:
            highest[moment.phase] = moment
        reserved[moment.phase] = max(moment.reserved, reserved.get(moment.phase, 0))
    return tuple(PhasePeak(phase, moment.alive, reserved[phase]) for phase, moment in highest.items())


def thinned(moments: Sequence[Moment]) -> tuple[tuple[str, dict[str, int]], ...]:
    """At most some hundreds of the moments: of each stretch the highest."""
    stretch = max(1, -(-len(moments) // _POINTS))
    parts = [moments[start : start + stretch] for start in range(0, len(moments), stretch)]
    return tuple((top.phase, top.alive) for top in (max(part, key=lambda moment: moment.bytes) for part in parts))
