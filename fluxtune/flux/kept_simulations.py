"""Simulations that were done before are not done again: what they found is kept, by all that decides it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from fluxtune.dataset.cache import cache_folder, key_of
from fluxtune.environment.device import versions
from fluxtune.errors import StorageError
from fluxtune.files import write_text
from fluxtune.flux.base import Base

_FORMAT = 3
"""Raised when the simulation itself changes."""


class Found(Protocol):
    """What a simulation found."""

    def as_record(self) -> dict[str, Any]:
        """As JSON holds it."""
        ...


T = TypeVar("T", bound=Found)


def kept(
    kind: str, base: Base, decides: dict[str, Any], simulate: Callable[[], T], read: Callable[[dict[str, Any]], T]
) -> T:
    """What ``simulate`` finds, from the cache if it was found before.

    Args:
        kind: of simulation.
        decides: all that decides what is found, beside the base model's configs and the libraries' versions, as JSON.
        read: what ``as_record`` gave; an error of it means that the entry is damaged.
    """
    libraries, deciding = (json.dumps(each, sort_keys=True) for each in (versions(), decides))
    key = key_of("forecast", _FORMAT, kind, libraries, _configs(base), deciding)
    file = cache_folder() / "forecasts" / f"{key}.json"
    # What is missing or damaged is made anew.
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        return read(json.loads(file.read_text(encoding="utf-8")))
    made = simulate()
    # A cache that cannot be written costs time, and nothing else.
    with suppress(StorageError):
        write_text(file, json.dumps(made.as_record()))
    return made


def _configs(base: Base) -> bytes:
    """What the configs of the base model say, which decides sizes."""
    parts = ("transformer", "vae", *base.text_encoders)
    configs = [(base.folder / part / "config.json").read_bytes() for part in parts]
    return b"\n".join([*configs, str(base.text_tokens).encode()])
