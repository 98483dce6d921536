"""What the subcommands that write a LoRA have in common: their options, where it goes, and what they say of it."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from fluxtune.cli.render import printable, write_line
from fluxtune.errors import UsageError
from fluxtune.lora.conventions import LoraFormat
from fluxtune.runs import lora_in

if TYPE_CHECKING:
    from fluxtune.exporting.conversion import Written

Format: TypeAlias = Annotated[
    LoraFormat,
    typer.Option("--format", "-f", help="Whose names the file uses. diffusers' are read by ComfyUI and Forge, too."),
]
Output: TypeAlias = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="The file to write; by default NAME-FORMAT.safetensors."),
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
    typer.Option("--verify/--no-verify", help="Read the file back with a second reader, and compare every layer."),
]
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


def lora_file(named: Path) -> Path:
    """The LoRA that a file, a run folder or a checkpoint's folder stands for.

    Raises:
        StorageError: the folder is no run, or the run has no result yet.
    """
    return lora_in(named) if named.is_dir() else named


def weighted(text: str) -> tuple[Path, float]:
    """``FILE`` or ``FILE:WEIGHT``, or the same with a run folder.

    Raises:
        UsageError: the weight is no finite number.
    """
    name, _, weight = text.rpartition(":")
    try:
        use = (Path(name), float(weight)) if name and not Path(text).exists() else (Path(text), 1.0)
    except ValueError:
        use = (Path(text), 1.0)
    if not math.isfinite(use[1]):
        raise UsageError(f"{weight!r} is no weight: wanted a finite number", where=text, hint=f"{name}:0.8")
    return lora_file(use[0]), use[1]


def default_output(source: Path, suffix: str) -> Path:
    """A file in the working folder, named after its source."""
    return Path(f"{source.stem}-{suffix}.safetensors")


def require_other(output: Path, sources: list[Path]) -> None:
    """Refuse to write over what is read.

    Raises:
        UsageError: the output is one of the sources.
    """
    for source in sources:
        if output.exists() and source.exists() and output.samefile(source):
            raise UsageError(
                "the output is the file that is read", where=str(output), hint="name another file with --output"
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
