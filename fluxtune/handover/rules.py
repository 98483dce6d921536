"""What tables of correspondences are made of: a row says how settings of another trainer become ours, and ours its."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from fluxtune.config.schema import Config
from fluxtune.config.settings import settings, shown
from fluxtune.exporting.layouts import Layout
from fluxtune.handover.given import Given

Values: TypeAlias = dict[str, Any]
"""Dotted key -> value."""


@dataclass(frozen=True)
class Wanted:
    """A run of ours that another trainer shall do.

    Attributes:
        config: its settings.
        pictures: how often pictures are seen in an epoch.
        caption: the first one, which previews have without prompts.
        data: the file that describes the data set for the other trainer, where it will be.
        described: the same file, where it is now.
        folder: where the files for the trainer will be.
    """

    config: Config
    pictures: int
    caption: str
    data: str
    described: Path
    folder: str

    def __getitem__(self, key: str) -> Any:
        """The value of a setting of ours."""
        value: Any = self.config
        for part in key.split("."):
            value = getattr(value, part)
        return value

    @property
    def prompts(self) -> list[str]:
        """Those of the previews."""
        return self.config.previews.prompts or [self.caption]

    @property
    def preview_steps(self) -> int:
        """Denoising steps of a preview: unset, those that the base model wants."""
        return self.config.previews.steps or (4 if "schnell" in self.config.model.base.lower() else 28)

    @property
    def alpha(self) -> float:
        """The adapter's scale times its rank; unset, the rank."""
        return self.config.lora.alpha or float(self.config.lora.rank)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the previews, in pixels."""
        side = self.config.dataset.resolution[0]
        return self.config.previews.width or side, self.config.previews.height or side


@dataclass(frozen=True)
class Rule:
    """Settings that belong together.

    Attributes:
        theirs: their names in the other trainer.
        ours: their names here.
        write: what the other trainer is given for a run of ours.
        read: what ours become by what is given there, with what the trainer does where nothing is given.
        note: what a reader should know, above all where one is only nearly the other.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    write: Callable[[Wanted], Values]
    read: Callable[[Given], Values]
    note: str = ""


@dataclass(frozen=True)
class Fixed:
    """What a LoRA of FLUX.1 needs there, and what is said of a file that has something else.

    Attributes:
        usual: what the trainer takes where it is not given.
        otherwise: why another value cannot be taken over; with ``refused`` it is refused, else warned of.
        also: other values that come to the same.
    """

    theirs: str
    value: Any
    otherwise: str = ""
    usual: Any = None
    also: tuple[Any, ...] = ()
    refused: bool = False


@dataclass(frozen=True)
class Trainer:
    """Another trainer, as data.

    Attributes:
        name: as ``--to`` has it; ``title`` as people call it.
        source: the repository whose files say what the keys mean.
        layout: of the data set.
        file: the name of its settings file, which is written.
        rules, fixed: the correspondences.
        without: our setting or section that it has not -> what it does instead; the longest that fits counts.
        nature: what it does otherwise whatever the settings are.
        technical: keys that say how it works, not what it learns.
        meanings: keys that mean something else here -> what.
        text: (values by dotted name, wanted) -> file name -> text of each file that it is given.
        command: (folder, wanted) -> what starts it, and in which folder.
        masks: whether it has masks; ``masks_by``, the key that has them looked at, if there is one.
        other_model: why settings are not about FLUX.1; None if they are.
        to_do: what a person has to do before it starts.
    """

    name: str
    title: str
    source: str
    layout: Layout
    file: str
    rules: Sequence[Rule]
    fixed: Sequence[Fixed]
    without: Mapping[str, str]
    nature: Sequence[str]
    technical: frozenset[str]
    meanings: Mapping[str, str]
    text: Callable[[Values, Wanted], dict[str, str]]
    command: Callable[[str, Wanted], str]
    masks: bool = True
    masks_by: str | None = None
    other_model: Callable[[Given], str | None] | None = None
    to_do: Callable[[Wanted], Sequence[str]] | None = None


def same(theirs: str, ours: str, usual: Any, note: str = "") -> Rule:
    """A setting that both have with the same meaning; ``usual`` is what the other takes where it is not given."""

    def read(given: Given) -> Values:
        kinds = settings()[ours].kinds
        ask = given.whole if "integer" in kinds else given.number if "number" in kinds else given.text
        value = given.switch(theirs, usual) if "boolean" in kinds else ask(theirs, usual)
        is_float = "number" in kinds and isinstance(value, int) and not isinstance(value, bool)
        return {} if value is None else {ours: float(value) if is_float else value}

    return Rule((theirs,), (ours,), lambda wanted: {theirs: wanted[ours]}, read, note)


def alpha_of_one(theirs: str) -> Rule:
    """The alpha of a trainer that takes 1 where none is given; here none is the rank."""
    return Rule(
        (theirs,),
        ("lora.alpha",),
        lambda wanted: {theirs: wanted.alpha},
        lambda given: {"lora.alpha": float(given.number(theirs, 1.0))},
        "Unset is written out as the rank.",
    )


def named(
    theirs: str,
    ours: str,
    usual: str | None,
    names: Mapping[str, Any],
    also: Mapping[str, str] | None = None,
    near: Mapping[str, tuple[str, str]] | None = None,
    otherwise: str | None = None,
    note: str = "",
) -> Rule:
    """A choice whose values have other names there.

    Args:
        names: our value -> theirs; of two of ours with the same name there, the first is what it becomes here.
        also: further names of theirs -> our value.
        near: names of theirs -> (the nearest value of ours, what differs).
        otherwise: our value for any other name, which is warned of; None refuses it.
    """
    back: dict[str, str] = {}
    for mine, other in names.items():
        back.setdefault(str(other).lower(), mine)
    back |= {name.lower(): mine for name, mine in (also or {}).items()}
    nearly = {name.lower(): mine for name, mine in (near or {}).items()}

    def read(given: Given) -> Values:
        seen = given.text(theirs, usual)
        if seen is None:
            return {}
        if seen.lower() in back:
            return {ours: back[seen.lower()]}
        if seen.lower() in nearly:
            value, difference = nearly[seen.lower()]
            given.warn(theirs, f"{theirs} = {shown(seen)}: {difference}; {ours} becomes {shown(value)}")
            return {ours: value}
        known = ", ".join(dict.fromkeys([*back, *nearly]))
        if otherwise is None:
            given.refuse(theirs, f"{theirs} is {shown(seen)}: wanted one of {known}")
            return {}
        given.warn(theirs, f"{theirs} = {shown(seen)} has no counterpart here; {ours} becomes {shown(otherwise)}")
        return {ours: otherwise}

    return Rule((theirs,), (ours,), lambda wanted: {theirs: names[wanted[ours]]}, read, note)


def reason(table: Mapping[str, str], key: str) -> str | None:
    """What a table says of a setting or of the innermost section around it."""
    parts = key.split(".")
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((table[prefix] for prefix in prefixes if prefix in table), None)


def nested(values: Values) -> dict[str, Any]:
    """``{"train.lr": 1}`` -> ``{"train": {"lr": 1}}``"""
    tables: dict[str, Any] = {}
    for key, value in values.items():
        *path, name = key.split(".")
        table = tables
        for part in path:
            table = table.setdefault(part, {})
        table[name] = value
    return tables
