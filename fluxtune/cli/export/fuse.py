"""`fluxtune export fuse` and `fluxtune export extract`: from LoRAs to a whole model, and back."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from fluxtune.cli.export.options import Dtype, Format, Verify, as_data, open_named, require_other, require_outside, say
from fluxtune.cli.options import Base, Json
from fluxtune.cli.render import printable, sink, write_line
from fluxtune.environment.device import quiet_libraries
from fluxtune.errors import UsageError
from fluxtune.events import Result
from fluxtune.exporting.methods import Checkpoint
from fluxtune.lora.conventions import LoraFormat
from fluxtune.lora.use import lora_use


def fuse(
    loras: Annotated[
        list[str],
        typer.Argument(
            metavar="LORA[:WEIGHT]...", help="LoRA files or run folders, each with its weight.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PLACE", help="The folder to make, or the file to write.")
    ] = None,
    base: Base = None,
    form: Annotated[
        Checkpoint,
        typer.Option(
            "--format", "-f", help="diffusers: a folder with all parts; comfyui: the transformer as a single file."
        ),
    ] = Checkpoint.DIFFUSERS,
    dtype: Annotated[
        Literal["bf16", "fp16", "fp32", "fp8"],
        typer.Option("--dtype", help="Precision of the transformer; fp8: its matrices, of a single file."),
    ] = "bf16",
    verify: Verify = True,
    as_json: Json = False,
) -> None:
    """Write the base model with LoRAs in it, as a model of its own, in the memory of a few of its tensors.

    \b
    Examples:
      fluxtune export fuse runs/zorvex --output zorvex-flux
      fluxtune export fuse zorvex.safetensors:0.8 --format comfyui --dtype fp8 --output zorvex-fp8.safetensors
    """
    if output is None:
        raise UsageError("--output is not given", where="fluxtune export fuse", hint="--output zorvex-flux")
    if dtype == "fp8" and form is Checkpoint.DIFFUSERS:
        raise UsageError("diffusers loads no fp8 folders", where="--dtype", hint="add --format comfyui")
    uses = [lora_use(text, "LORA") for text in loras]
    require_other(output, [use.path for use in uses])
    with sink(as_json) as on_event:
        quiet_libraries()
        from fluxtune.exporting.fusing import fuse as write
        from fluxtune.lora.opened import base_of, open_lora

        named = base or next((found for use in uses if (found := base_of(use.path))), None)
        model = open_named(named, on_event)
        require_outside(output, model)
        read = [(open_lora(use, model, on_event).acting(), 1.0) for use in uses]
        fused = write(model, read, form, output, dtype, on_event, verify)
        if as_json:
            data = {**vars(fused), "output": str(fused.output), "files": [str(file) for file in fused.files]}
            on_event(Result("export fuse", data))
    if not as_json:
        checked = "not verified" if fused.error is None else "every changed weight was read back"
        write_line(
            sys.stderr,
            f"{fused.changed} of {fused.tensors} tensors changed, {fused.bytes / 2**30:.1f} GiB; {checked}",
        )
        write_line(sys.stdout, printable(str(fused.output)))


def extract(
    original: Annotated[
        str, typer.Argument(metavar="BASE", help="The model that the training began with: a hub id or a folder.")
    ],
    tuned: Annotated[
        str,
        typer.Argument(metavar="TUNED", help="The trained model: a hub id, a folder, or a file of its transformer."),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="The LoRA to write.")] = None,
    rank: Annotated[int, typer.Option("--rank", "-r", min=1, max=1024, metavar="N", help="Rank of the LoRA.")] = 32,
    form: Format = LoraFormat.DIFFUSERS,
    dtype: Dtype = None,
    verify: Verify = True,
    as_json: Json = False,
) -> None:
    """Make a LoRA of what distinguishes a fully trained model from the one its training began with.

    \b
    Examples:
      fluxtune export extract black-forest-labs/FLUX.1-dev my-flux --rank 32 --output my-flux-lora.safetensors
      fluxtune export extract black-forest-labs/FLUX.1-dev tuned.safetensors --format kohya --output lora.safetensors
    """
    if output is None:
        raise UsageError("--output is not given", where="fluxtune export extract", hint="--output lora.safetensors")
    require_other(output, [])
    with sink(as_json) as on_event:
        quiet_libraries()
        from fluxtune.exporting.conversion import Wanted, write
        from fluxtune.exporting.extraction import extract as take

        before = open_named(original, on_event)
        single = tuned if tuned.endswith(".safetensors") else None
        after = open_named(original if single else tuned, on_event, single)
        require_outside(output, before, after)
        found = take(before, after, rank, on_event)
        facts = {
            "modelspec.title": output.stem,
            "modelspec.architecture": before.family.architecture(before.embeds_guidance),
            "ss_output_name": output.stem,
            "ss_sd_model_name": before.name,
        }
        written = write(found.layers, facts, Wanted(form, output, dtype, verify=verify), on_event, before.family)
        written = replace(written, cut=max(found.errors.values()))
        if as_json:
            on_event(Result("export extract", as_data(written)))
    if not as_json:
        say(written)
