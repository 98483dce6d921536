"""Named layers of settings: those that ship with fluxtune, the user's own, and any TOML file by its path."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fluxtune.config.problems import nearest
from fluxtune.config.settings import shown
from fluxtune.errors import UsageError

_PACKAGE = Path(__file__).parents[1]
_SEPARATORS = tuple(separator for separator in (os.sep, os.altsep) if separator)


@dataclass(frozen=True)
class Preset:
    """A preset. ``source`` is how messages name its file; ``kind`` is ``built-in``, ``yours`` or ``file``."""

    name: str
    file: Path
    source: str
    kind: str

    @property
    def description(self) -> str:
        """The file's first comment line; empty if the file begins with anything else or cannot be read."""
        try:
            with open(self.file, encoding="utf-8-sig", errors="replace") as lines:
                first = lines.readline().strip()
        except OSError:
            return ""
        return first.lstrip("# ") if first.startswith("#") else ""


def built_in_folder() -> Path:
    """Where the presets that ship are: in the package of an installed wheel, else in the checkout beside it."""
    packaged = _PACKAGE / "_presets"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "presets"


def user_folder() -> Path:
    """Where the user's own presets are: ``$FLUXTUNE_CONFIG/presets``, or the user's configuration folder.

    Raises:
        UsageError: there is neither.
    """
    if configured := os.environ.get("FLUXTUNE_CONFIG"):
        return Path(os.path.expanduser(configured)) / "presets"
    from platformdirs import user_config_path

    with suppress(RuntimeError):
        folder = user_config_path("fluxtune", appauthor=False)
        if folder.is_absolute():
            return folder / "presets"
    raise UsageError("you have no home folder to look for presets in", where="HOME", hint="set HOME or FLUXTUNE_CONFIG")


def listing() -> list[Preset]:
    """All presets with a name, smallest built-in first; one of the user's hides a built-in one of the same name."""
    files = [file for file in sorted(user_folder().glob("*.toml")) if file.is_file()]  # no link that leads nowhere
    own = {file.stem: Preset(file.stem, file, str(file), "yours") for file in files}
    shipped = [built_in(file.stem) for file in built_in_folder().glob("*.toml")]
    shipped.sort(key=lambda preset: _size(preset.name))
    return [preset for preset in shipped if preset.name not in own] + list(own.values())


def built_in(name: str) -> Preset:
    """A preset that ships, also where one of the user's hides it."""
    file = built_in_folder() / f"{name}.toml"
    return Preset(name, file, file.name, "built-in")


def find(wanted: str, working_folder: Path) -> Preset:
    """The preset of that name, or the TOML file at that path.

    Raises:
        UsageError: there is none; the hint has the nearest name.
    """
    if wanted.endswith(".toml") or any(separator in wanted for separator in _SEPARATORS):
        file = working_folder / os.path.expanduser(wanted)
        return Preset(file.stem, file, wanted, "file")
    known = {preset.name: preset for preset in listing()}
    if wanted in known:
        return known[wanted]
    close = nearest(wanted, list(known))
    names = ", ".join(known)
    raise UsageError(
        f"there is no preset {shown(wanted)}: wanted one of {names}, or the path of a .toml file",
        where="--preset",
        hint=f"did you mean {close}?" if close else "`fluxtune presets` lists what each is for",
    )


def _size(name: str) -> tuple[int, str]:
    """Order of the built-in presets: those without a memory size first, then by GB."""
    digits, unit, _ = name.partition("gb")
    return (int(digits) if unit and digits.isdigit() else 0, name)
