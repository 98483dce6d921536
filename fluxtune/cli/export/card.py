"""`fluxtune export card`: a model card with the LoRA and sample pictures, in a folder or on the hub."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fluxtune.cli.options import Json
from fluxtune.cli.render import printable, sink, write_line
from fluxtune.environment.device import quiet_libraries
from fluxtune.errors import UsageError
from fluxtune.events import Result, Sink

if TYPE_CHECKING:
    from fluxtune.exporting.publishing import Source


def card(
    lora: Annotated[
        Path,
        typer.Argument(
            metavar="LORA", help="A LoRA file, a run folder, or the folder of a checkpoint.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="The folder to make; by default NAME-card.")
    ] = None,
    pictures: Annotated[
        list[Path] | None,
        typer.Option(
            "--picture",
            metavar="FILE",
            help="A picture to show, with its prompt where `fluxtune sample` made it; repeatable. By default the run's "
            "last previews.",
        ),
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(
            "--license", metavar="NAME", help="The LoRA's licence, as the hub calls it; by default the base model's."
        ),
    ] = None,
    show_captions: Annotated[
        bool, typer.Option("--show-captions", help="Tell prompts that are captions of the training pictures, too.")
    ] = False,
    repository: Annotated[
        str | None,
        typer.Option(
            "--push",
            metavar="USER/NAME",
            help="Also put it on the Hugging Face hub, as one commit to this repository; made, and private, where "
            "there is none.",
        ),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="The repository may be seen by everybody.")] = False,
    as_json: Json = False,
) -> None:
    """Write a model card, with the LoRA and sample pictures beside it, for a folder or the hub.

    \b
    Examples:
      fluxtune export card runs/zorvex
      fluxtune export card zorvex.safetensors --picture a.png --picture b.png --output zorvex-card
      fluxtune export card runs/zorvex --push ada/zorvex-flux-lora
    """
    if public and repository is None:
        raise UsageError("nothing is pushed that could be public", where="--public", hint="--push USER/NAME")
    with sink(as_json) as on_event:
        quiet_libraries()
        from fluxtune.exporting.publishing import source_of
        from fluxtune.hub.pushing import require_pushable

        if repository is not None:
            require_pushable(repository)
        source = source_of(lora, pictures or [], show_captions, on_event)
        if repository is None or output is not None:
            folder = output or Path(f"{source.lora.stem}-card")
            data = _made(source, folder, license, repository, public, on_event)
        else:
            with TemporaryDirectory() as temporary:
                data = _made(source, Path(temporary) / "card", license, repository, public, on_event)
            data["folder"] = None
        if as_json:
            on_event(Result("export card", data))
    if not as_json:
        _say(data)


def _made(
    source: Source, folder: Path, license: str | None, repository: str | None, public: bool, on_event: Sink
) -> dict[str, Any]:
    """Write the folder, push it where that is wanted, and say what was done."""
    from fluxtune.exporting.publishing import write_card_folder
    from fluxtune.hub.pushing import push

    files = write_card_folder(source, folder, license, repository, on_event)
    data: dict[str, Any] = {"folder": str(folder), "files": [path.as_posix() for path in files], "pushed": None}
    if repository is not None:
        message = f"{source.lora.stem}: LoRA, card and pictures"
        data["pushed"] = asdict(push(folder, repository, public, message, on_event))
    return data


def _say(data: dict[str, Any]) -> None:
    write_line(sys.stderr, printable(f"{len(data['files'])} files: {', '.join(data['files'])}"))
    if pushed := data["pushed"]:
        seen = "only those may see it who may see the repository" if pushed["private"] else "everybody may see it"
        write_line(sys.stderr, f"pushed as commit {printable(pushed['commit'][:12])}; {seen}")
    write_line(sys.stdout, printable(pushed["url"] if pushed else data["folder"]))
