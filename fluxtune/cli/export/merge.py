"""`fluxtune export merge`: several LoRAs as one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fluxtune.cli.export.options import (
    Denoise,
    Dtype,
    Format,
    Metadata,
    TrainedOn,
    Verify,
    as_data,
    bases,
    require_other,
    require_outside,
    say,
)
from fluxtune.cli.options import Json
from fluxtune.cli.render import sink
from fluxtune.environment.device import quiet_libraries
from fluxtune.errors import UsageError
from fluxtune.events import Result
from fluxtune.exporting.methods import Method
from fluxtune.lora.conventions import LoraFormat
from fluxtune.lora.use import lora_use


def merge(
    loras: Annotated[
        list[str],
        typer.Argument(
            metavar="LORA[:WEIGHT]...", help="LoRA files or run folders, each with its weight.", show_default=False
        ),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")] = None,
    method: Annotated[
        Method,
        typer.Option(
            "--method",
            "-m",
            help="exact: ranks add up; svd: cut down to --rank; ties, dare, dare-ties: less disagreement, by peft.",
        ),
    ] = Method.EXACT,
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank", "-r", min=1, metavar="N", help="Rank of the result; by default the largest that goes in."
        ),
    ] = None,
    density: Annotated[
        float, typer.Option("--density", metavar="SHARE", help="Share of the values that ties and dare keep.")
    ] = 0.5,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of what dare drops.")] = 42,
    base: TrainedOn = None,
    form: Format = LoraFormat.DIFFUSERS,
    dtype: Dtype = None,
    metadata: Metadata = None,
    verify: Verify = True,
    denoise: Denoise = False,
    as_json: Json = False,
) -> None:
    """Make one LoRA of several, each with its weight.

    \b
    Examples:
      fluxtune export merge style.safetensors:0.8 zorvex.safetensors:0.5 --output both.safetensors
      fluxtune export merge a.safetensors b.safetensors --method svd --rank 16 --output both.safetensors
      fluxtune export merge a.safetensors b.safetensors --method ties --density 0.3 --output both.safetensors
    """
    if output is None:
        raise UsageError("--output is not given", where="fluxtune export merge", hint="--output both.safetensors")
    if not 0 < density <= 1:
        raise UsageError(f"{density} is no share: wanted more than 0, at most 1", where="--density", hint="0.5")
    if rank is not None and method is Method.EXACT:
        raise UsageError("an exact merge has the sum of the ranks", where="--rank", hint="add --method svd")
    uses = [lora_use(text, "LORA") for text in loras]
    require_other(output, [use.path for use in uses])
    with sink(as_json) as on_event:
        quiet_libraries()
        from fluxtune.exporting.conversion import Wanted
        from fluxtune.exporting.merging import Merging, merge_files
        from fluxtune.exporting.statements import stated

        merging = Merging(method, rank, density, seed)
        models = bases(base, denoise, [use.path for use in uses], on_event)
        require_outside(output, *models)
        said = stated(metadata or [])
        wanted = Wanted(form, output, dtype, verify=verify, denoise=models.to_denoise, metadata=said)
        written = merge_files(uses, merging, wanted, on_event, base=models.to_read)
        if as_json:
            on_event(Result("export merge", as_data(written)))
    if not as_json:
        say(written)
