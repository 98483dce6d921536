"""The `fluxtune` command: its subcommands, and the one place where failures become messages and exit codes."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import traceback
import warnings
from contextlib import redirect_stdout
from typing import Annotated

import typer

from fluxtune import __version__
from fluxtune.cli import export
from fluxtune.cli.caption import caption
from fluxtune.cli.doctor import doctor
from fluxtune.cli.presets import presets
from fluxtune.cli.render import report, write_line
from fluxtune.cli.sample import sample
from fluxtune.cli.signals import termination_as_interruption
from fluxtune.cli.train import train
from fluxtune.cli.validate import validate
from fluxtune.environment.launch import place
from fluxtune.errors import ExitCode, FluxtuneError, Stopped, UsageError

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
app.command("presets")(presets)
app.command("doctor")(doctor)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; every failure is shown here and nowhere else."""
    arguments = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in arguments
    failure: FluxtuneError
    _quiet_libraries()
    if not place().is_main:
        return _as_helper(arguments)
    with termination_as_interruption() as interruption:
        try:
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
            outcome = typer.main.get_command(app).main(arguments, prog_name="fluxtune", standalone_mode=False)
            if outcome != ExitCode.INTERRUPTED:
                _flush()
                return outcome or ExitCode.DONE
            failure = Stopped("interrupted", interruption())
        except FluxtuneError as error:
            failure = error
        except typer.TyperException as error:
            failure = _usage_error(error)
        except typer.Abort:
            failure = Stopped("interrupted", interruption())
        except Exception as error:  # whatever else comes here is a bug
            failure = _unexpected(error, arguments)
    report(failure, as_json)
    return failure.exit_code


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
            report(_unexpected(error, arguments), as_json=False)
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
    """Keep what libraries tell their programmers off the user's screen, unless the user asked for it."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _usage_error(error: typer.TyperException) -> UsageError:
    """What Typer found wrong with the command line, as one of ours."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "fluxtune"
    near = sorted(getattr(error, "possibilities", None) or ())
    message = getattr(error, "message", "") if near else error.format_message()
    return UsageError(
        message[:1].lower() + message[1:].rstrip("."),
        where=command,
        hint=f"did you mean {' or '.join(near)}?" if near else f"`{command} --help` shows how it is used",
    )


def _unexpected(error: Exception, arguments: list[str]) -> FluxtuneError:
    """A bug: its traceback goes to a file, its name to the user."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="fluxtune-error-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as log:
        log.write(f"fluxtune {__version__}, Python {platform.python_version()}, {platform.platform()}\n")
        log.write(f"arguments: {arguments}\n\n{''.join(traceback.format_exception(error))}")
    return FluxtuneError(
        f"unexpected {type(error).__name__}: {error}",
        hint=f"this is a bug in fluxtune: please report it together with {log.name}",
    )


def _flush() -> None:
    """Write out what is left; where nobody reads it any more, let Python's own flush at exit find a closed ear."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
