"""What every section of the configuration is made of."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_PATH = r"^[^\x00]+$"
"""No file system knows a name with a zero byte in it."""


class Section(BaseModel):
    """A closed, strictly typed group of settings: unknown keys and wrong types are errors, never ignored."""

    # Deferred: `--help` reads the fields and validates nothing.
    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        # With a bound pydantic looks into every text, and refuses bytes of a command line that are no UTF-8.
        str_max_length=2**20,
        defer_build=True,
    )


def setting(
    default: Any = ...,
    help: str = "",
    *,
    unit: str | None = None,
    form: str | None = None,
    path: Literal["path", "path or id"] | None = None,
    **constraints: Any,
) -> Any:
    """One setting: its default, its one-sentence help, its unit and its range, written in this one place.

    Args:
        default: the value without any layer; none means the key must be given.
        help: what it does, as `--help`, `--explain` and error messages show it.
        unit: of a number, for instance ``px``.
        form: what a text must look like, in words, beside the `pattern` that checks it.
        path: the text names a file or folder, relative to the file that sets it; ``path or id`` only where it
            exists there, since it may also be the name of something on a hub.
        constraints: ranges, as `pydantic.Field` takes them.
    """
    marks: dict[str, Any] = {name: mark for name, mark in (("unit", unit), ("form", form), ("path", path)) if mark}
    if path:
        constraints.setdefault("pattern", _PATH)
    if isinstance(default, list):
        return Field(default_factory=lambda: list(default), description=help, json_schema_extra=marks, **constraints)
    return Field(default, description=help, json_schema_extra=marks, **constraints)


def section(kind: type[Section], help: str) -> Any:
    """A group of settings inside another; its default is all of its own defaults."""
    return Field(default_factory=kind, description=help)
