"""The command line of `fluxtune sample`."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fluxtune.cli.options import Base, ConfigFile, Json, Preset, Sets, given, setting_flag
from fluxtune.cli.render import sink, write_result
from fluxtune.cli.sample.asked import both_sides, lora_uses, request_of
from fluxtune.cli.sample.effect import require_effect
from fluxtune.cli.sample.repeated import request_again, require_alone
from fluxtune.cli.sample.settings import Given, resolved, run_around
from fluxtune.environment.device import quiet_libraries
from fluxtune.events import Result, Warning
from fluxtune.sampling.axes import read_axis
from fluxtune.sampling.prompts import read_prompts, row_of
from fluxtune.sampling.request import SampleRequest
from fluxtune.sampling.wanted import MOST


class Accepted(StrEnum):
    """What is not refused."""

    MEMORY = "memory"


def sample(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            help="What to paint, each in quotes; without any, the preview prompts of the settings. {red|blue} is one "
            "of both, __colour__ a line of colour.txt in the folder of --wildcards.",
            show_default=False,
        ),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="A file of prompts: text with one on each line, or TOML or JSON lines with seeds, sizes and more of "
            "their own.",
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora",
            "-l",
            metavar="FILE[:SCALE]",
            help="A LoRA file, or the folder of a run or a checkpoint. SCALE is 1 unless given; by group of layers "
            "double=0.5,single=1 (groups: double, single, outside, attention, mlp, modulation, text). Repeatable.",
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Paint each picture without the LoRA too, and a labelled grid of both.")
    ] = False,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            metavar="AXIS=VALUES",
            help="Vary lora-scale, checkpoint (all, or steps), seed, steps, guidance, true-guidance, strength, size, "
            'prompt or negative-prompt, and paint labelled grids: --grid lora-scale=0,0.5,1 --grid "prompt=a cup|a '
            'boat". Repeatable: the second axis goes down, further ones make more grids.',
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option("--start", metavar="PICTURE", help="Begin with this picture instead of noise."),
    ] = None,
    strength: Annotated[str | None, setting_flag("sampling.strength", "--strength", metavar="X")] = None,
    again: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            metavar="PICTURE",
            help="Make a picture, or those of a grid, again from what it says of itself; flags change it. Repeatable.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the pictures; none is overwritten.")
    ] = Path("samples"),
    seed: Annotated[str | None, typer.Option("--seed", metavar="N", help="Seed of the first picture.")] = None,
    count: Annotated[
        int | None,
        typer.Option(
            "--count",
            "-n",
            metavar="N",
            min=1,
            max=MOST,
            help="Pictures of each prompt, with seeds counted up from --seed.",
        ),
    ] = None,
    steps: Annotated[str | None, setting_flag("previews.steps", "--steps", "-s", metavar="N")] = None,
    guidance: Annotated[str | None, setting_flag("previews.guidance", "--guidance", "-g", metavar="X")] = None,
    negative: Annotated[
        str | None, setting_flag("sampling.negative_prompt", "--negative-prompt", metavar="TEXT")
    ] = None,
    true_guidance: Annotated[str | None, setting_flag("sampling.true_guidance", "--true-guidance", metavar="X")] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="WIDTHxHEIGHT", help="For instance 1024x768."),
    ] = None,
    width: Annotated[str | None, setting_flag("previews.width", "--width", metavar="PIXELS")] = None,
    height: Annotated[str | None, setting_flag("previews.height", "--height", metavar="PIXELS")] = None,
    wildcards: Annotated[str | None, setting_flag("sampling.wildcards", "--wildcards", metavar="FOLDER")] = None,
    form: Annotated[str | None, setting_flag("sampling.format", "--format", metavar="png|jpeg|webp")] = None,
    quality: Annotated[str | None, setting_flag("sampling.quality", "--quality", metavar="N")] = None,
    batch_size: Annotated[str | None, setting_flag("sampling.batch_size", "--batch-size", metavar="N")] = None,
    accept: Annotated[
        list[Accepted] | None,
        typer.Option("--accept", metavar="memory", help="Try what is foretold not to fit in memory."),
    ] = None,
    base: Base = None,
    preset: Preset = None,
    config_file: ConfigFile = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Paint prompts with FLUX, with or without LoRAs.

    A LoRA in the run folder that made it brings the run's settings along: base model, memory, size, steps, preview
    prompts. A preset, your TOML file and flags are above them.

    \b
    Examples:
      fluxtune sample "a red house on a hill" --base nano
      fluxtune sample "a zorvex in a boat" --lora runs/nano --compare --count 4
      fluxtune sample --prompts prompts.toml --lora mug.safetensors:0.8 --preset 24gb --size 1024x768
      fluxtune sample --lora runs/nano --grid checkpoint=all
      fluxtune sample --from samples/00-seed42.png --steps 40
    """
    across, down = both_sides(size, width, height)
    flags = given(
        {
            "model.base": ("--base", base),
            "previews.seeds": ("--seed", None if seed is None else [seed]),
            "previews.steps": ("--steps", steps),
            "previews.guidance": ("--guidance", guidance),
            "previews.width": ("--width" if size is None else "--size", across),
            "previews.height": ("--height" if size is None else "--size", down),
            "sampling.negative_prompt": ("--negative-prompt", negative),
            "sampling.true_guidance": ("--true-guidance", true_guidance),
            "sampling.strength": ("--strength", strength),
            "sampling.wildcards": ("--wildcards", wildcards),
            "sampling.format": ("--format", form),
            "sampling.quality": ("--quality", quality),
            "sampling.batch_size": ("--batch-size", batch_size),
        }
    )
    layers = Given(preset, config_file, flags, sets or [])
    remarks: tuple[Warning, ...] = ()
    if again:
        require_alone(
            {
                "PROMPT": prompts,
                "--prompts": prompts_file,
                "--grid": grid,
                "--count": count,
                "--compare": compare,
                "--preset": preset,
            }
        )
        request, remarks = request_again(again, layers, lora or [], start, output)
    else:
        uses = lora_uses(lora or [], grid or [])
        request = request_of(
            resolved(layers, [use.path for use in uses]),
            loras=tuple(uses),
            prompts=(*map(row_of, prompts or ()), *(read_prompts(prompts_file) if prompts_file else ())),
            count=count,
            axes=tuple(read_axis(text, tuple(run_around(use.path) for use in uses)) for text in grid or ()),
            compare=compare,
            start=start,
            sized=across is not None or down is not None,
            output=output,
        )
    require_effect(request, layers.named, {"PROMPT": prompts, "--prompts": prompts_file, "--count": count})
    _make(request, remarks, bool(accept), as_json)


def _make(request: SampleRequest, remarks: Sequence[Warning], tries_anyway: bool, as_json: bool) -> None:
    with sink(as_json) as on_event:
        quiet_libraries()
        from fluxtune.sampling.generate import sample as make

        for remark in remarks:
            on_event(remark)
        made = make(request, on_event, tries_anyway)
        files, grids = list(map(str, made.pictures)), list(map(str, made.grids))
        on_event(Result("sample", {"pictures": files, "grid": grids[0] if grids else None, "grids": grids}))
    if not as_json:
        for file in (*files, *grids):
            write_result(file)
