"""Pictures made again from what they say of themselves: the same settings, and the files that they name by hash."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator

from fluxtune.config.memory import Precision
from fluxtune.config.previews import Seed, Side
from fluxtune.environment.device import versions
from fluxtune.errors import DataError, UsageError
from fluxtune.events import Warning
from fluxtune.files import sha256_of
from fluxtune.lora.use import LoraUse
from fluxtune.nano import EMBEDDED
from fluxtune.sampling.picture_files import SCHEMA, facts_in
from fluxtune.sampling.wanted import MOST, Place, Wanted

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_DECIDE = ("torch", "diffusers", "transformers", "peft", "bitsandbytes")
"""Packages whose version can decide the last bits of a picture."""


def _encodable(text: str) -> str:
    """Refuses halves of surrogate pairs, which JSON can hold and no tokenizer takes."""
    text.encode()
    return text


def _named(name: str) -> str:
    """Refuses what no file can be called."""
    if not 0 < len(name.encode()) <= 255 or "\0" in name:
        raise ValueError("no file is called so")
    return name


_Text = Annotated[str, AfterValidator(_encodable)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Fact(BaseModel):
    """A part of what a picture says; a later version may say more."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)


class _File(_Fact):
    file: Annotated[str, AfterValidator(_named)]
    sha256: _Sha256


class _Lora(_File):
    scale: float
    groups: list[Annotated[tuple[str, float], Strict(False)]] = []


class _Start(_File):
    strength: float = Field(gt=0.0, le=1.0)


class _Batch(_Fact):
    size: int = Field(ge=1, le=64)
    index: int = Field(ge=0, lt=64)

    @model_validator(mode="after")
    def _is_inside(self) -> _Batch:
        if self.index >= self.size:
            raise ValueError("a picture stands outside its batch")
        return self


class _Facts(_Fact):
    prompt: _Text
    seed: Seed
    width: Side
    height: Side
    steps: int = Field(ge=1, le=1000)
    guidance: float = Field(ge=0.0, le=100.0)
    negative_prompt: _Text | None = None
    true_guidance: float = Field(2.0, gt=1.0, le=100.0)
    template: _Text | None = None
    start: _Start | None = None
    batch: _Batch = _Batch(size=1, index=0)
    loras: list[_Lora] = []
    base: str
    base_files: dict[str, str] = {}
    revision: str | None = None
    base_fingerprint: str | None = None
    base_precision: Precision
    modulation: Literal["card", "ahead", "auto"]
    text_precision: Precision
    vae_tiling: bool
    compile: bool = False
    precision: Literal["bf16", "fp32"]
    device: Literal["cpu", "cuda"]
    versions: dict[str, str] = {}


@dataclass(frozen=True)
class Again:
    """What some pictures come to.

    Attributes:
        settings: that all of them were made with, by dotted key; without ``model.base`` where that is a local folder,
            of which only ``base`` tells the name.
        base_files: part of the base model (``transformer``...) -> name of the single file that stood in for it.
        fingerprint: of the base model's files, where no hub's commit says what they are.
        remarks: what may make them come out differently here.
    """

    pictures: tuple[Wanted, ...]
    settings: dict[str, Any]
    base: str
    base_files: Mapping[str, str]
    fingerprint: str | None
    remarks: tuple[Warning, ...]


def read_again(files: Sequence[Path], loras: Sequence[Path], start: Path | None) -> Again:
    """Read what pictures, or grids of pictures, say of themselves.

    LoRAs and start pictures are looked for among those that are named, then under their name beside the picture, in
    the working folder, and in the runs that lie there; their hash decides.

    Raises:
        DataError: a picture cannot be read, does not say enough, or names a file that is not found.
        UsageError: the pictures were made with different models or settings, or without a file that is named.
    """
    told = [(file, facts) for file in files for facts in _facts_of(file)]
    first = told[0][1]
    for file, facts in told:
        if _model_of(facts) != _model_of(first):
            raise UsageError(
                "these pictures were made with different models or settings",
                where=str(file),
                hint="make them again one by one",
            )
    hash_of = cache(sha256_of)
    pictures = tuple(_wanted(file, facts, loras, start, hash_of) for file, facts in told)
    _refuse_unused(pictures, loras, start)
    return Again(
        pictures,
        _settings(first),
        first.base,
        first.base_files,
        first.base_fingerprint,
        tuple(_remarks(files[0], first)),
    )


def _facts_of(file: Path) -> Iterator[_Facts]:
    facts = facts_in(file)
    pictures = facts.get("pictures", [facts])
    if not isinstance(pictures, list) or not 0 < len(pictures) <= MOST:
        pictures = [None]
    for each in pictures:
        yield _checked(each, file)


def _refuse_unused(pictures: Sequence[Wanted], loras: Sequence[Path], start: Path | None) -> None:
    used = {use.path for wanted in pictures for use in wanted.loras} | {wanted.start for wanted in pictures}
    for file, flag in [*((lora, "--lora") for lora in loras), *([(start, "--start")] if start else [])]:
        if file not in used:
            raise UsageError(
                f"{file} is not what the picture was made with, which alone can make it again",
                where=flag,
                hint="leave it out; with other files a picture is another one: paint it from its prompt",
            )


def _checked(facts: Any, file: Path) -> _Facts:
    if not isinstance(facts, dict) or facts.get("schema") != SCHEMA:
        raise DataError(
            "what this picture says of itself is in no form that this version knows",
            where=str(file),
            hint="update fluxtune",
        )
    if facts.get("redacted"):
        raise DataError(
            "a token or the home folder stood in what made this picture and is left out of it, so it cannot be made "
            "again",
            where=str(file),
            hint="paint it anew from its prompt",
        )
    try:
        return _Facts.model_validate(facts)
    except ValidationError as error:
        keys = sorted({str(detail["loc"][0]) for detail in error.errors(include_url=False, include_input=False)})
        raise DataError(
            f"what this picture says of itself is not enough to make it again: {', '.join(keys)} missing or wrong",
            where=str(file),
            hint="give one as `fluxtune sample` wrote it",
        ) from error


def _model_of(facts: _Facts) -> tuple[Any, ...]:
    return facts.base, facts.base_files, facts.base_fingerprint, _settings(facts)


def _settings(facts: _Facts) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "memory.base_precision": facts.base_precision,
        "memory.modulation": facts.modulation,
        "memory.text_precision": facts.text_precision,
        "memory.vae_tiling": facts.vae_tiling,
        "sampling.compile": facts.compile,
        "training.precision": facts.precision,
        "training.device": facts.device,
    }
    if facts.base == EMBEDDED or (facts.revision is not None and _HUB_ID.fullmatch(facts.base)):
        settings["model.base"] = facts.base
    if facts.revision is not None:
        settings["model.revision"] = facts.revision
    return settings


def _wanted(
    file: Path, facts: _Facts, loras: Sequence[Path], start: Path | None, hash_of: Callable[[Path], str]
) -> Wanted:
    uses = [
        LoraUse(_found(file, each, loras, "LoRA", "--lora FILE", hash_of), each.scale, tuple(each.groups))
        for each in facts.loras
    ]
    begin, begun = facts.start, None
    if begin:
        begun = _found(file, begin, [start] if start else [], "start picture", "--start FILE", hash_of)
    return Wanted(
        prompt=facts.prompt,
        seed=facts.seed,
        width=facts.width,
        height=facts.height,
        steps=facts.steps,
        guidance=facts.guidance,
        negative_prompt=facts.negative_prompt,
        true_guidance=facts.true_guidance,
        start=begun,
        strength=begin.strength if begin else 1.0,
        loras=tuple(uses),
        place=Place(facts.batch.size, facts.batch.index),
        template=facts.template,
    )


def _found(
    picture: Path, wanted: _File, named: Sequence[Path], what: str, flag: str, hash_of: Callable[[Path], str]
) -> Path:
    """The file of a hash."""
    name = Path(wanted.file).name
    beside = [folder / name for folder in (picture.parent, Path(), *Path("runs").glob("*"))]
    checkpoints = [folder / name for folder in Path("runs").glob("*/checkpoints/*")]
    for candidate in (*named, *beside, *checkpoints):
        if candidate.is_file() and hash_of(candidate) == wanted.sha256:
            return candidate
    raise DataError(
        f"the {what} {name} of this picture is not found: one with the SHA-256 {wanted.sha256[:12]}...",
        where=str(picture),
        hint=f"say where it is: {flag}; it must be the same file to the byte",
    )


def _remarks(file: Path, facts: _Facts) -> Iterator[Warning]:
    here = versions()
    others = [
        f"{name} {facts.versions[name]}" for name in _DECIDE if facts.versions.get(name) not in (None, here.get(name))
    ]
    if others:
        yield Warning(
            f"this picture was made with {', '.join(others)}: with the versions here its last bits may differ",
            where=str(file),
        )
