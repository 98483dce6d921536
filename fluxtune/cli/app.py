"""The `fluxtune` command: its subcommands, and the one place where failures become messages and exit codes."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import redirect_stdout
from typing import Annotated

import typer

from fluxtune import __version__
from fluxtune.cli import export, streams
from fluxtune.cli.caption import caption
from fluxtune.cli.doctor import doctor
from fluxtune.cli.failures import as_ours
from fluxtune.cli.import_config import app as import_app
from fluxtune.cli.presets import presets
from fluxtune.cli.render import report
from fluxtune.cli.sample import sample
from fluxtune.cli.signals import termination_as_interruption
from fluxtune.cli.streams import write_line
from fluxtune.cli.train import train
from fluxtune.cli.validate import validate
from fluxtune.environment.launch import place
from fluxtune.errors import ExitCode, FluxtuneError, Stopped

_HELP = """Teach FLUX a person, a product or a style from a few pictures.

\b
Examples:
  fluxtune train --preset nano      no graphics card, no pictures needed
  fluxtune train photos --preset 24gb --trigger zorvex
  fluxtune presets
"""

app = typer.Typer(
    name="fluxtune",
    help=_HELP,
    context_settings={"help_option_names": ["--help", "-h"]},
    rich_markup_mode=None,  # plain help starts in half the time, and shows [[brackets]] as they are
)
app.command("train")(train)
app.command("validate")(validate)
app.command("caption")(caption)
app.command("sample")(sample)
app.add_typer(export.app)
app.add_typer(import_app)
app.command("presets")(presets)
app.command("doctor")(doctor)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; every failure is shown here and nowhere else."""
    arguments = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in arguments
    outcome: int | None = ExitCode.DONE
    failure: FluxtuneError | None = None
    _quiet_libraries()
    streams.open_missing()
    if not place().is_main:
        return _as_helper(arguments)
    stdout, stderr = sys.stdout, sys.stderr
    with termination_as_interruption() as interruption:
        try:
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
            outcome = typer.main.get_command(app).main(arguments, prog_name="fluxtune", standalone_mode=False)
            if outcome == ExitCode.INTERRUPTED:
                failure = Stopped("interrupted", interruption())
        except (typer.Abort, KeyboardInterrupt):
            failure = Stopped("interrupted", interruption())
        except SystemExit as end:
            # So Typer answers any broken pipe, with streams of its own. Of `--help | head` the help has done its part.
            sys.stdout, sys.stderr = stdout, stderr
            if not isinstance(end.__context__, BrokenPipeError):
                raise
            if not streams.nobody_reads(stdout):
                failure = as_ours(end.__context__, arguments)
        except Exception as error:  # whatever comes here that is none of ours is a bug
            failure = as_ours(error, arguments)
    if failure is not None:
        report(failure, as_json)
    lost = streams.finish()
    if failure is None and lost is not None:
        report(failure := lost, as_json=False)
    return failure.exit_code if failure is not None else outcome or ExitCode.DONE


def _as_helper(arguments: list[str]) -> int:
    """Of several processes one that is not the main one: it helps to train, and leaves every word to that one.

    Only of a bug it speaks itself.
    """
    if arguments[:1] != ["train"]:
        return ExitCode.DONE
    with open(os.devnull, "w") as nobody, redirect_stdout(nobody), termination_as_interruption():
        try:
            typer.main.get_command(app).main(arguments, prog_name="fluxtune", standalone_mode=False)
        except (FluxtuneError, typer.TyperException, typer.Abort):
            pass
        except Exception as error:
            report(as_ours(error, arguments), as_json=False)
            return ExitCode.UNEXPECTED
    return ExitCode.DONE


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        write_line(sys.stdout, f"fluxtune {__version__}")
        raise typer.Exit(ExitCode.DONE)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(ExitCode.USAGE)


def _quiet_libraries() -> None:
    """Keep what libraries tell their programmers off the user's screen, unless the user asked for it; and what they
    would tell their makers of the user, on this machine."""
    for name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ.setdefault(name, "1")
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
