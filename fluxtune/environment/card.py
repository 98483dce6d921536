"""The NVIDIA cards and their driver, as nvidia-smi tells of them: without torch, which may be missing or wrong.

Needs the standard library alone, since `scripts/setup.py` asks before anything is installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 30.0
"""Seconds; a driver that hangs makes nvidia-smi hang."""

OLDEST_DRIVERS = {13: 580, 12: 525, 11: 450}
"""CUDA's major version -> the oldest driver that runs any of its minor versions, on Linux and Windows
(docs.nvidia.com/deploy/cuda-compatibility, "Minor Version Compatibility")."""

# In WSL it is not always on the path.
_PLACES = ("nvidia-smi", "/usr/lib/wsl/lib/nvidia-smi")
_FIELDS = ("index", "name", "driver_version", "memory.total", "memory.free")


@dataclass(frozen=True)
class Card:
    """A graphics card. Memory is in GiB, none where the card shares the system's; old drivers hide the capability."""

    index: int
    name: str
    total: float | None
    free: float | None
    capability: tuple[int, int] | None


@dataclass(frozen=True)
class Holder:
    """A process that holds memory of a card: GiB, none where the system does not tell (Windows, WSL)."""

    pid: int
    name: str
    held: float | None


@dataclass(frozen=True)
class Graphics:
    """What nvidia-smi says.

    Attributes:
        installed: whether there is an nvidia-smi.
        trouble: its words, or ours, where it failed.
        driver: the driver's version.
        cuda: the newest CUDA that the driver takes.
    """

    installed: bool
    trouble: str | None = None
    driver: str | None = None
    cuda: tuple[int, int] | None = None
    cards: tuple[Card, ...] = ()
    holders: tuple[Holder, ...] = ()

    @property
    def foremost(self) -> Card | None:
        """The most capable card, which CUDA puts first."""
        return max(self.cards, key=lambda card: (card.capability or (0, 0), card.total or 0.0), default=None)


def look() -> Graphics:
    """Ask nvidia-smi; whatever goes wrong is part of the answer."""
    program = next((found for place in _PLACES if (found := shutil.which(place))), None)
    if program is None:
        return Graphics(installed=False)
    banner, trouble = _said(program)
    if trouble is not None:
        return Graphics(installed=True, trouble=trouble)
    rows, trouble = _query(program, "gpu", (*_FIELDS, "compute_cap"))
    if trouble is not None:  # drivers before 510 know no compute_cap
        rows, trouble = _query(program, "gpu", _FIELDS)
    if trouble is not None:
        return Graphics(installed=True, trouble=trouble)
    holders, _ = _query(program, "compute-apps", ("pid", "process_name", "used_memory"))
    driver = rows[0][2] if rows else None
    return Graphics(
        installed=True,
        driver=driver,
        cuda=_cuda_of(banner, driver),
        cards=tuple(map(_card, rows)),
        holders=tuple(Holder(int(pid), Path(name).name, _gib(held)) for pid, name, held in holders),
    )


def has_nvidia_hardware() -> bool:
    """Whether Linux sees an NVIDIA display device on the bus, whatever its driver; False where that cannot be known."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
        except OSError:
            continue
        if vendor == "0x10de" and kind.startswith("0x03"):
            return True
    return False


def _query(program: str, about: str, fields: tuple[str, ...]) -> tuple[list[list[str]], str | None]:
    text, trouble = _said(program, f"--query-{about}={','.join(fields)}", "--format=csv,noheader,nounits")
    rows = [[cell.strip() for cell in line.split(", ")] for line in text.splitlines()]
    return [row for row in rows if len(row) == len(fields)], trouble


def _said(program: str, *arguments: str) -> tuple[str, str | None]:
    """(What it printed, what went wrong)."""
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=PATIENCE, errors="replace", check=False
        )
    except subprocess.TimeoutExpired:
        return "", f"it gave no answer within {PATIENCE:.0f} s"
    except OSError as error:
        return "", f"it cannot be run: {error.strerror}"
    if done.returncode == 0:
        return done.stdout, None
    words = " ".join((done.stdout + " " + done.stderr).split())
    return "", words or f"it failed with exit code {done.returncode} and no words"


def _card(row: list[str]) -> Card:
    index, name, _, total, free, *rest = row
    capability = _version(rest[0]) if rest else None
    return Card(int(index), name, _gib(total), _gib(free), capability)


def _gib(mebibytes: str) -> float | None:
    return float(mebibytes) / 1024 if mebibytes.replace(".", "", 1).isdigit() else None


def _cuda_of(banner: str, driver: str | None) -> tuple[int, int] | None:
    """From the banner, whose label is another since driver 610; where it says N/A, from the driver's version."""
    if told := re.search(r"CUDA (?:UMD )?Version:\s*(\d+\.\d+)", banner):
        return _version(told[1])
    series = _version(driver or "")
    return series and next(((cuda, 0) for cuda, oldest in OLDEST_DRIVERS.items() if series[0] >= oldest), None)


def _version(text: str) -> tuple[int, int] | None:
    """The first two numbers of a version; none of what is not one."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None
