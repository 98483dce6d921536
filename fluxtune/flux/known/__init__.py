"""What the configs of the well-known base models say, shipped: so that a plan needs neither weights nor network."""

from __future__ import annotations

from pathlib import Path

from fluxtune.flux.base import Base, base_in

_FOLDERS = {
    "black-forest-labs/FLUX.1-dev": "FLUX.1-dev",
    "black-forest-labs/FLUX.1-Krea-dev": "FLUX.1-dev",
    "black-forest-labs/FLUX.1-schnell": "FLUX.1-schnell",
}
"""Id on the hub -> folder here; models of the same sizes share one."""


def known_base(name: str) -> Base | None:
    """The base model of that hub id, of configs alone; None for any other."""
    folder = _FOLDERS.get(name)
    return base_in(Path(__file__).with_name(folder), name) if folder else None
