"""`fluxtune export`: hand over to other programs. One file a subcommand; `convert` is meant where none is named."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from fluxtune.cli.export.card import card
from fluxtune.cli.export.config import config
from fluxtune.cli.export.convert import convert, resize
from fluxtune.cli.export.dataset import dataset
from fluxtune.cli.export.fuse import extract, fuse
from fluxtune.cli.export.inspect import inspect
from fluxtune.cli.export.merge import merge
from fluxtune.errors import ExitCode

_HELP = """Hand over to other programs: LoRA files, whole models, data sets, runs.

`fluxtune export FILE --format kohya` is short for `fluxtune export convert FILE --format kohya`; a file that is named
like a subcommand is written ./merge.

\b
Examples:
  fluxtune export runs/zorvex --format kohya --output zorvex-kohya.safetensors
  fluxtune export inspect zorvex.safetensors
  fluxtune export merge style.safetensors:0.8 zorvex.safetensors --output both.safetensors
  fluxtune export fuse zorvex.safetensors --format comfyui --output zorvex-flux.safetensors
  fluxtune export dataset photos --format kohya --output for-kohya
  fluxtune export config photos --preset 24gb --to ai-toolkit --output for-ai-toolkit
  fluxtune export card runs/zorvex --push ada/zorvex-flux-lora
"""
_DEFAULT = "convert"


class _WithDefault(TyperGroup):
    """A group in which what is no subcommand is an argument of `convert`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(name="export", help=_HELP, rich_markup_mode=None, cls=_WithDefault)
app.command("convert")(convert)
app.command("resize")(resize)
app.command("merge")(merge)
app.command("extract")(extract)
app.command("fuse")(fuse)
app.command("inspect")(inspect)
app.command("dataset")(dataset)
app.command("config")(config)
app.command("card")(card)


@app.callback(invoke_without_command=True)
def _export(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(ExitCode.USAGE)
