"""All checks of `fluxtune doctor`, in the order in which a person would mend what they find."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fluxtune.doctor.asking import Broken, ask
from fluxtune.doctor.graphics import check_cards, check_driver
from fluxtune.doctor.hub import check_hub, has_to_be_downloaded
from fluxtune.doctor.libraries import (
    check_bitsandbytes,
    check_imports,
    check_python,
    check_torchao,
    check_versions,
)
from fluxtune.doctor.machine import check_disks, check_memory
from fluxtune.doctor.presets import check_presets
from fluxtune.doctor.torch_build import check_torch
from fluxtune.environment.card import Graphics, look
from fluxtune.environment.device import versions
from fluxtune.events import Finding, Phase, Progress, Sink, ignore

_HUB_PATIENCE = 30.0


@dataclass(frozen=True)
class Diagnosis:
    """What was found, in order, and what nvidia-smi told."""

    findings: tuple[Finding, ...]
    graphics: Graphics

    def count(self, severity: str) -> int:
        """How many findings are of ``ok``, ``note``, ``warning`` or ``error``."""
        return Counter(finding.severity for finding in self.findings)[severity]

    def as_data(self) -> dict[str, Any]:
        """The diagnosis as the JSON object that scripts read."""
        return {
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "findings": [asdict(finding) for finding in self.findings],
            "versions": versions(),
            "driver": self.graphics.driver,
            "cards": [asdict(card) for card in self.graphics.cards],
        }


def examine(base: str, runs: Path, on_event: Sink = ignore) -> Diagnosis:
    """Look at the machine and the installation; nothing is changed, and nothing that is broken stops it.

    Args:
        base: the base model that is to be trained: a hub id, a folder, or ``nano``.
        runs: where run folders go.
        on_event: is told of the findings as they come, and of the progress.
    """
    on_event(Phase("doctor", "looking at the machine and trying the libraries"))
    graphics = look()
    torch = ask("torch")
    hub = ask("hub", base, patience=_HUB_PATIENCE)
    cache = None if isinstance(hub, Broken) else Path(hub["cache"])
    rounds: list[Callable[[], Iterator[Finding]]] = [
        check_python,
        lambda: check_driver(graphics, not isinstance(torch, Broken) and torch["available"]),
        lambda: check_cards(graphics),
        lambda: check_presets(graphics),
        lambda: check_torch(torch, graphics),
        check_versions,
        lambda: _of_libraries(torch, graphics),
        check_memory,
        lambda: check_disks(cache, has_to_be_downloaded(hub), runs),
        lambda: check_hub(hub, base),
    ]
    findings: list[Finding] = []
    for done, check in enumerate(rounds):
        on_event(Progress("doctor", done, len(rounds), "checks"))
        for finding in check():
            findings.append(finding)
            on_event(finding)
    on_event(Progress("doctor", len(rounds), len(rounds), "checks"))
    return Diagnosis(tuple(findings), graphics)


def _of_libraries(torch: dict[str, Any] | Broken, graphics: Graphics) -> Iterator[Finding]:
    """Those that stand on torch are not asked while that is broken."""
    if isinstance(torch, Broken):
        yield Finding("note", "libraries", "what needs torch was not tried, since torch does not work")
        return
    yield from check_imports(ask("libraries"))
    yield from check_bitsandbytes(ask("bitsandbytes"), graphics)
    yield from check_torchao(ask("torchao"))
