"""`fluxtune sample`: prompts and LoRAs to pictures."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fluxtune.cli.options import Base, ConfigFile, Json, Preset, Sets, given, setting_flag
from fluxtune.cli.render import sink, write_result
from fluxtune.config.documents import Layer, read_layer
from fluxtune.config.layers import Resolved, resolve
from fluxtune.environment.device import quiet_libraries
from fluxtune.errors import UsageError
from fluxtune.events import Result
from fluxtune.lora.use import LoraUse, lora_use
from fluxtune.sampling.request import SampleRequest

# All of a section where no names are given. The folders say that the run had pictures, and no demo data set with
# preview prompts of its own. The rest would only let settings contradict each other that no picture depends on.
_READ: dict[str, tuple[str, ...]] = {
    "model": (),
    "memory": (),
    "previews": (),
    "dataset": ("folders", "resolution"),
    "training": ("precision", "device"),
}

_PROMPTS_HINT = "give a text file in UTF-8 with a prompt on each line"


def sample(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            help="What to paint, each in quotes; without any, the preview prompts of the settings.",
            show_default=False,
        ),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help="A text file with a prompt on each line."),
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
            help="Pictures of each prompt, with seeds counted up from --seed.",
        ),
    ] = None,
    steps: Annotated[str | None, setting_flag("previews.steps", "--steps", "-s", metavar="N")] = None,
    guidance: Annotated[str | None, setting_flag("previews.guidance", "--guidance", "-g", metavar="X")] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="WIDTHxHEIGHT", help="For instance 1024x768."),
    ] = None,
    width: Annotated[str | None, setting_flag("previews.width", "--width", metavar="PIXELS")] = None,
    height: Annotated[str | None, setting_flag("previews.height", "--height", metavar="PIXELS")] = None,
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
      fluxtune sample --prompts prompts.txt --lora mug.safetensors:0.8 --preset 24gb --size 1024x768
    """
    loras = [lora_use(text) for text in lora or ()]
    across, down = _sides(size, width, height)
    flags = given(
        {
            "model.base": ("--base", base),
            "previews.seeds": ("--seed", None if seed is None else [seed]),
            "previews.steps": ("--steps", steps),
            "previews.guidance": ("--guidance", guidance),
            "previews.width": ("--width" if size is None else "--size", across),
            "previews.height": ("--height" if size is None else "--size", down),
        }
    )
    resolved = _resolve(preset, config_file, flags, sets or [], [use.path for use in loras])
    request = _request(resolved, loras, _prompts(prompts or [], prompts_file), count, compare, output)
    with sink(as_json) as on_event:
        quiet_libraries()
        from fluxtune.sampling.generate import sample as make

        made = make(request, on_event)
        files = [str(path) for path in made.pictures]
        on_event(Result("sample", {"pictures": files, "grid": str(made.grid) if made.grid else None}))
    if not as_json:
        for file in (*files, *([str(made.grid)] if made.grid else [])):
            write_result(file)


def _run_around(path: Path) -> Path | None:
    """The run folder that a result or a checkpoint's file lies in."""
    return next((folder for folder in list(path.parents)[:3] if (folder / "run.json").is_file()), None)


def _sides(size: str | None, width: str | None, height: str | None) -> tuple[str | None, str | None]:
    """(width, height) as they were given, in either way."""
    if size is None:
        return width, height
    if width is not None or height is not None:
        raise UsageError(
            "--size gives both sides already", where="--size", hint="leave out --width and --height, or --size"
        )
    sides = re.fullmatch(r"(\d+)[xX\u00d7](\d+)", size)
    if sides is None:
        raise UsageError(f"{size!r} is no size: wanted WIDTHxHEIGHT", where="--size", hint="for instance 1024x768")
    return sides[1], sides[2]


def _prompts(given_prompts: list[str], file: Path | None) -> list[str]:
    if file is None:
        return given_prompts
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"cannot read the prompts: {error.strerror}", where=str(file), hint=_PROMPTS_HINT) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read the prompts: {error}", where=str(file), hint=_PROMPTS_HINT) from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise UsageError("there is no prompt in this file", where=str(file), hint=_PROMPTS_HINT)
    return [*given_prompts, *found]


def _resolve(
    preset: str | None,
    config_file: Path | None,
    flags: dict[str, tuple[str, object]],
    sets: list[str],
    loras: list[Path],
) -> Resolved:
    """The settings; at the bottom those of the run that made the LoRA, or the base that the LoRA itself names."""
    here = Path.cwd()
    run = next((run for path in loras if (run := _run_around(path))), None)
    lowest = None if run is None else _settings_of(run)
    resolved = resolve(
        preset=preset,
        config_file=config_file,
        flags=flags,
        sets=sets,
        working_folder=here,
        lowest=lowest,
        data_sets=False,
    )
    if resolved.origins["model.base"] != "default" or not loras:
        return resolved
    from fluxtune.sampling.loras import base_of

    named = next((base for path in loras if (base := base_of(path))), None)
    if named is None:
        return resolved
    lowest = Layer("--lora", {"model": {"base": named}}, here)
    return resolve(
        preset=preset,
        config_file=config_file,
        flags=flags,
        sets=sets,
        working_folder=here,
        lowest=lowest,
        data_sets=False,
    )


def _settings_of(run: Path) -> Layer:
    """What sampling reads of the settings of a run, as a layer."""
    file = run / "config.toml"
    whole = read_layer(file, str(file))
    values = {section: table for section, table in whole.values.items() if section in _READ}
    for section, names in _READ.items():
        if names and isinstance(table := values.get(section), dict):
            values[section] = {name: value for name, value in table.items() if name in names}
    return replace(whole, values=values)


def _request(
    resolved: Resolved,
    loras: list[LoraUse],
    prompts: list[str],
    count: int | None,
    compare: bool,
    output: Path,
) -> SampleRequest:
    config = resolved.config
    previews, side = config.previews, config.dataset.resolution[0]
    first = previews.seeds[0]
    return SampleRequest(
        model=config.model,
        prompts=tuple(prompts or previews.prompts),
        seeds=tuple(previews.seeds if count is None else range(first, first + count)),
        steps=previews.steps,
        guidance=previews.guidance,
        width=previews.width or side,
        height=previews.height or side,
        output=output,
        loras=tuple(loras),
        compare=compare,
        memory=config.memory,
        precision=config.training.precision,
        device=config.training.device,
    )
