"""What the subcommands that write a LoRA have in common: their options, where it goes, and what they say of it."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias

import typer

from fluxtune.cli.render import printable, write_line
from fluxtune.config.layers import resolve
from fluxtune.errors import UsageError
from fluxtune.events import Sink
from fluxtune.lora.conventions import LoraFormat

if TYPE_CHECKING:
    from fluxtune.exporting.conversion import Written
    from fluxtune.flux.base import Base as BaseModel

Format: TypeAlias = Annotated[
    LoraFormat,
    typer.Option("--format", "-f", help="Whose names the file uses. diffusers' are read by ComfyUI and Forge, too."),
]
Output: TypeAlias = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="The file to write; by default a new NAME-FORMAT.safetensors."),
]
Dtype: TypeAlias = Annotated[
    Literal["fp32", "bf16", "fp16"] | None,
    typer.Option("--dtype", help="Precision of the weights; by default bf16, of ai-toolkit's format fp16."),
]
Rank: TypeAlias = Annotated[
    int | None, typer.Option("--rank", "-r", min=1, metavar="N", help="Cut every layer down to this rank at most.")
]
Energy: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--energy", metavar="SHARE", help="Cut every layer down to the smallest rank that keeps this share of it, 0.95."
    ),
]
MaxSize: TypeAlias = Annotated[
    str | None,
    typer.Option("--size", metavar="SIZE", help="Cut the layers down so that all weights take this much: 50MB, 20MiB."),
]
Verify: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--verify/--no-verify",
        help="Read the file back with a second reader, and with diffusers where it reads the format, and compare every "
        "layer.",
    ),
]
Denoise: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--denoise",
        help="Also load the base model, and compare one denoising step with the LoRA as read and as written.",
    ),
]

TrainedOn: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--base",
        "-b",
        metavar="ID|FOLDER|nano",
        help="The model that the LoRA was trained on. A DoRA needs it, whose change depends on the model's weights.",
    ),
]


class Bases(NamedTuple):
    """Base models that an export needs: to read what depends on its weights, and to try what was written."""

    to_read: BaseModel | None
    to_denoise: BaseModel | None


Metadata: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--metadata",
        metavar="NAME=VALUE",
        help="What the file says of itself: title, author, description, license, tags, trigger, usage, or a picture as "
        "thumbnail; an empty value takes it out. Can be repeated.",
    ),
]
KeepCaptions: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--keep-captions",
        help="Keep what the file has of the training captions' words, and the names of folders with them.",
    ),
]

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, None: 2}


def size_options(rank: int | None, energy: float | None, size: str | None, dtype: str | None) -> dict[str, Any] | None:
    """What `--rank`, `--energy` and `--size` ask for, as the fields of ``exporting.resizing.Size``; None for nothing.

    Raises:
        UsageError: a value is none, or more than one was given.
    """
    used = [name for name, value in (("--rank", rank), ("--energy", energy), ("--size", size)) if value is not None]
    if len(used) > 1:
        raise UsageError(f"{' and '.join(used)} cannot go together", where=used[1], hint=f"leave out {used[1]}")
    if energy is not None and not 0 < energy < 1:
        raise UsageError(f"{energy} is no share: wanted more than 0 and less than 1", where="--energy", hint="0.95")
    if rank is not None:
        return {"rank": rank}
    if energy is not None:
        return {"energy": energy}
    return None if size is None else {"bytes": _bytes(size), "bytes_each": _BYTES[dtype]}


def default_output(source: Path, suffix: str) -> Path:
    """A file in the working folder, named after its source."""
    return Path(f"{source.stem}-{suffix}.safetensors")


def require_other(output: Path, sources: Iterable[Path]) -> None:
    """Refuse to write over what is read, or to no file at all.

    Raises:
        UsageError: the output is one of the sources, or a name is missing.
    """
    if not output.name:
        raise UsageError(f"{str(output)!r} is no file's name", where="--output", hint="name the file to write")
    for source in sources:
        if output.exists() and source.exists() and output.samefile(source):
            raise UsageError(
                "the output is the file that is read", where=str(output), hint="name another file with --output"
            )


def require_outside(output: Path, *models: BaseModel | None) -> None:
    """Refuse to write over a file of a base model.

    Raises:
        UsageError: the output is one of its files, or would lie among its weights.
    """
    for model in filter(None, models):
        require_other(output, model.files.values())
        # In the hub's cache the files are links, which are not to be followed.
        place, folder = output.parent.resolve() / output.name, model.folder.resolve()
        if place.is_relative_to(folder) and (output.exists() or (folder / place.relative_to(folder).parts[0]).is_dir()):
            raise UsageError(
                f"the output would be a part of the base model {model.name}, which is read",
                where=str(output),
                hint="name a place outside of its folder with --output",
            )


def say(written: Written) -> None:
    """What was written, for people: facts on stderr, the file on stdout."""
    parts = [f"{written.layers} layers in {written.tensors} tensors, {written.bytes / 2**20:.1f} MiB"]
    if written.cut:
        parts.append(f"cut down, at most {written.cut:.2%} of a layer's change lost")
    parts.append(
        "not verified"
        if written.error is None
        else f"verified: no layer is off by more than {written.error:.1e} of its change, no key unmatched"
    )
    if written.diffusers_error is not None:
        parts.append("diffusers reads the same")
    if written.denoised_error is not None:
        parts.append(f"a denoising step is off by {written.denoised_error:.1e} of what the LoRA changes")
    write_line(sys.stderr, "; ".join(parts))
    write_line(sys.stdout, printable(str(written.file)))


def as_data(written: Written) -> dict[str, Any]:
    """What was written, for programs."""
    return {**asdict(written), "file": str(written.file)}


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS or not math.isfinite(float(match[1])):
        raise UsageError(f"{text!r} is no size", where="--size", hint="for instance --size 50MB")
    return int(float(match[1]) * _UNITS[match[2]])


def bases(base: str | None, denoise: bool, sources: list[Path], on_event: Sink) -> Bases:
    """The models of `--base`, for reading a DoRA, and of `--denoise`; without `--base` that is the LoRA's own."""
    if base is None and not denoise:
        return Bases(None, None)
    from fluxtune.lora.opened import base_of

    opened = open_named(base or next((named for file in sources if (named := base_of(file))), None), on_event)
    return Bases(opened if base else None, opened if denoise else None)


def open_named(base: str | None, on_event: Sink, transformer: str | None = None) -> BaseModel:
    """The base model that was named, or that the user's settings name.

    Args:
        transformer: a file to take its transformer from.
    """
    from fluxtune.flux.base import open_base

    given: dict[str, tuple[str, object]] = {"model.base": ("--base", base), "model.transformer": ("TUNED", transformer)}
    flags = {key: (flag, value) for key, (flag, value) in given.items() if value is not None}
    resolved = resolve(preset=None, config_file=None, flags=flags, sets=[], working_folder=Path.cwd(), data_sets=False)
    return open_base(resolved.config.model, on_event)
