"""`fluxtune export convert` and `fluxtune export resize`: a LoRA file in another format, or smaller."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from fluxtune.cli.export.options import (
    Dtype,
    Energy,
    Format,
    KeepCaptions,
    MaxSize,
    Metadata,
    Output,
    Rank,
    Verify,
    as_data,
    default_output,
    lora_file,
    require_other,
    say,
    size_options,
)
from fluxtune.cli.options import Json
from fluxtune.cli.render import sink
from fluxtune.environment.device import quiet_libraries
from fluxtune.errors import UsageError
from fluxtune.events import Result
from fluxtune.lora.conventions import LoraFormat

Lora = Annotated[
    Path, typer.Argument(metavar="LORA", help="A LoRA file of any trainer, or a run folder.", show_default=False)
]


def convert(
    lora: Lora,
    form: Format = LoraFormat.DIFFUSERS,
    output: Output = None,
    rank: Rank = None,
    energy: Energy = None,
    size: MaxSize = None,
    dtype: Dtype = None,
    scale: Annotated[float, typer.Option("--scale", metavar="X", help="Multiply what the LoRA does.")] = 1.0,
    metadata: Metadata = None,
    keep_captions: KeepCaptions = False,
    verify: Verify = True,
    as_json: Json = False,
) -> None:
    """Write a LoRA in the format of another program.

    The format of the file is recognised. What was written is read back by a second reader and compared.

    \b
    Examples:
      fluxtune export runs/zorvex --format kohya
      fluxtune export zorvex.safetensors --format comfyui --output for-comfyui.safetensors
      fluxtune export from-civitai.safetensors --format diffusers --rank 16 --dtype fp16
      fluxtune export zorvex.safetensors --metadata author=ada --metadata thumbnail=zorvex.png
    """
    said = _Said(metadata or [], keep_captions)
    _run("export", lora, form, output, size_options(rank, energy, size, dtype), dtype, scale, said, verify, as_json)


def resize(
    lora: Lora,
    rank: Rank = None,
    energy: Energy = None,
    size: MaxSize = None,
    form: Format = LoraFormat.DIFFUSERS,
    output: Output = None,
    dtype: Dtype = None,
    metadata: Metadata = None,
    keep_captions: KeepCaptions = False,
    verify: Verify = True,
    as_json: Json = False,
) -> None:
    """Make a LoRA smaller: by rank, by the share that is kept, or to a size.

    \b
    Examples:
      fluxtune export resize zorvex.safetensors --rank 8
      fluxtune export resize zorvex.safetensors --energy 0.95
      fluxtune export resize zorvex.safetensors --size 20MB --format kohya
    """
    wanted = size_options(rank, energy, size, dtype)
    if wanted is None:
        raise UsageError("it is not said how small", where="fluxtune export resize", hint="--rank 8, or --energy 0.95")
    said = _Said(metadata or [], keep_captions)
    _run("export resize", lora, form, output, wanted, dtype, 1.0, said, verify, as_json)


class _Said(NamedTuple):
    """What the header is to say."""

    metadata: list[str]
    keep_captions: bool


def _run(
    command: str,
    lora: Path,
    form: LoraFormat,
    output: Path | None,
    size: dict[str, Any] | None,
    dtype: str | None,
    scale: float,
    said: _Said,
    verify: bool,
    as_json: bool,
) -> None:
    source = lora_file(lora)
    target = output or default_output(source, str(form))
    require_other(target, [source])
    with sink(as_json) as on_event:
        quiet_libraries()
        from fluxtune.exporting.conversion import Wanted
        from fluxtune.exporting.conversion import convert as write
        from fluxtune.exporting.resizing import Size
        from fluxtune.exporting.statements import stated

        cut = Size(**size) if size else None
        wanted = Wanted(form, target, dtype, cut, scale, verify, stated(said.metadata), said.keep_captions)
        written = write(source, wanted, on_event)
        if as_json:
            on_event(Result(command, as_data(written)))
    if not as_json:
        say(written)
