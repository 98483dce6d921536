"""Which build of torch a card and its driver take: one table, for `fluxtune doctor` and for `scripts/setup.py`.

Needs the standard library alone, since `scripts/setup.py` asks before anything is installed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

Capability: TypeAlias = tuple[int, int]
"""A card's compute capability: 8.9 is ``(8, 9)``."""


@dataclass(frozen=True)
class TorchBuild:
    """A kind of torch wheels.

    Attributes:
        name: the last part of its index: ``cu130`` or ``cpu``.
        torch: the release of torch to take: the one that the tests run with, or the newest that is built so.
        cuda: version of CUDA; none for the processor.
        kernels: the compute capabilities that it has machine code for.
    """

    name: str
    torch: str
    cuda: tuple[int, int] | None = None
    kernels: tuple[Capability, ...] = ()

    @property
    def requirement(self) -> str:
        """What pip is to install; the local version makes it replace another build of the same release."""
        return f"torch=={self.torch}+{self.name}"

    @property
    def index(self) -> str:
        """Where it is."""
        return f"https://download.pytorch.org/whl/{self.name}"


# Sources: RELEASE.md of pytorch/pytorch, "PyTorch CUDA Support Matrix" for 2.11 (pull request 175253), 2.12 (182849)
# and 2.13 (187075): 2.11 has 12.6, 12.8 and 13.0; 2.12 and 2.13 have 12.6, 13.0 and, experimentally, 13.2. Volta left
# 12.8 with 2.11 (issue 172352); what came before Turing is in 12.6 alone. The first that fits is taken: the build that
# PyPI has for Linux, then the other one of the tested release, last an older one, for Blackwell and drivers before 580.
BUILDS = (
    TorchBuild("cu130", "2.13.0", (13, 0), ((7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0))),
    TorchBuild("cu126", "2.13.0", (12, 6), ((5, 0), (6, 0), (7, 0), (7, 5), (8, 0), (8, 6), (9, 0))),
    TorchBuild("cu128", "2.11.0", (12, 8), ((7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0))),
)
CPU = TorchBuild("cpu", "2.13.0")


def build_for(driver_takes: tuple[int, int] | None, card: Capability | None) -> TorchBuild | None:
    """The build for a card; none where the driver is too old, or the card is.

    Args:
        driver_takes: the newest CUDA that the driver takes; none where that is not known.
        card: its compute capability, where that is known.
    """
    fitting = (build for build in BUILDS if takes(driver_takes, build.cuda))
    return next((build for build in fitting if card is None or has_kernels(build.kernels, card)), None)


def takes(driver_takes: tuple[int, int] | None, cuda: tuple[int, int] | None) -> bool:
    """Whether a driver runs programs of a CUDA version: those of its major version, and of older ones.

    (docs.nvidia.com/deploy/cuda-compatibility, "Minor Version Compatibility".)
    """
    return driver_takes is None or cuda is None or driver_takes[0] >= cuda[0]


def has_kernels(kernels: Iterable[Capability], card: Capability) -> bool:
    """Whether machine code for one of these capabilities runs on a card: that of its major version, not newer than it.

    (CUDA C++ Programming Guide, "Binary Compatibility".)
    """
    return any(major == card[0] and minor <= card[1] for major, minor in kernels)
