"""`fluxtune export convert` and `fluxtune export resize`: a LoRA file in another format, or smaller."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from fluxtune.cli.export.options import (
    Denoise,
    Dtype,
    Energy,
    Format,
    KeepCaptions,
    MaxSize,
    Metadata,
    Output,
    Rank,
    TrainedOn,
    Verify,
    as_data,
    bases,
    default_output,
    require_other,
    require_outside,
    say,
    size_options,
)
from fluxtune.cli.options import Json
from fluxtune.cli.render import sink
from fluxtune.environment.device import quiet_libraries
from fluxtune.errors import UsageError
from fluxtune.events import Result
from fluxtune.lora.conventions import LoraFormat
from fluxtune.runs import lora_in

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
    base: TrainedOn = None,
    metadata: Metadata = None,
    keep_captions: KeepCaptions = False,
    verify: Verify = True,
    denoise: Denoise = False,
    as_json: Json = False,
) -> None:
    """Write a LoRA in the format of another program.

    The format of the file is recognised. What was written is read back by a second reader and compared.

    \b
    Examples:
      fluxtune export runs/zorvex --format kohya
      fluxtune export zorvex.safetensors --format comfyui --output for-comfyui.safetensors
      fluxtune export from-civitai.safetensors --format diffusers --rank 16 --dtype fp16
      fluxtune export dora.safetensors --base black-forest-labs/FLUX.1-dev --format kohya
      fluxtune export zorvex.safetensors --metadata author=ada --metadata thumbnail=zorvex.png
    """
    if not math.isfinite(scale):
        raise UsageError(f"{scale} is no scale: wanted a finite number", where="--scale", hint="--scale 0.8")
    cut = size_options(rank, energy, size, dtype)
    said = metadata or []
    _run("export", lora, _Asked(form, output, dtype, cut, scale, base, said, keep_captions, verify, denoise), as_json)


def resize(
    lora: Lora,
    rank: Rank = None,
    energy: Energy = None,
    size: MaxSize = None,
    form: Format = LoraFormat.DIFFUSERS,
    output: Output = None,
    dtype: Dtype = None,
    base: TrainedOn = None,
    metadata: Metadata = None,
    keep_captions: KeepCaptions = False,
    verify: Verify = True,
    denoise: Denoise = False,
    as_json: Json = False,
) -> None:
    """Make a LoRA smaller: by rank, by the share that is kept, or to a size.

    \b
    Examples:
      fluxtune export resize zorvex.safetensors --rank 8
      fluxtune export resize zorvex.safetensors --energy 0.95
      fluxtune export resize zorvex.safetensors --size 20MB --format kohya
    """
    cut = size_options(rank, energy, size, dtype)
    if cut is None:
        raise UsageError("it is not said how small", where="fluxtune export resize", hint="--rank 8, or --energy 0.95")
    said = metadata or []
    asked = _Asked(form, output, dtype, cut, 1.0, base, said, keep_captions, verify, denoise)
    _run("export resize", lora, asked, as_json)


class _Asked(NamedTuple):
    """How the LoRA is to be written; ``cut`` as ``size_options`` gives it, ``metadata`` as the header is to say it."""

    form: LoraFormat
    output: Path | None
    dtype: str | None
    cut: dict[str, Any] | None
    scale: float
    base: str | None
    metadata: list[str]
    keep_captions: bool
    verify: bool
    denoise: bool


def _run(command: str, lora: Path, asked: _Asked, as_json: bool) -> None:
    source = lora_in(lora)
    target = asked.output or default_output(source, str(asked.form))
    require_other(target, [source])
    if asked.output is None and target.exists():
        raise UsageError("this is there already", where=str(target), hint=f"--output {target} writes over it")
    with sink(as_json) as on_event:
        quiet_libraries()
        from fluxtune.exporting.conversion import Wanted
        from fluxtune.exporting.conversion import convert as write
        from fluxtune.exporting.resizing import Size
        from fluxtune.exporting.statements import stated

        models = bases(asked.base, asked.denoise, [source], on_event)
        require_outside(target, *models)
        wanted = Wanted(
            format=asked.form,
            output=target,
            dtype=asked.dtype,
            size=Size(**asked.cut) if asked.cut else None,
            scale=asked.scale,
            verify=asked.verify,
            denoise=models.to_denoise,
            metadata=stated(asked.metadata),
            captions=asked.keep_captions,
        )
        written = write(source, wanted, on_event, base=models.to_read)
        if as_json:
            on_event(Result(command, as_data(written)))
    if not as_json:
        say(written)
