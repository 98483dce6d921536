"""`fluxtune caption`: let a captioner write the captions of a folder of pictures."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fluxtune.cli.options import ClassWord, ConfigFile, Json, Preset, Sets, Trigger, given, setting_flag
from fluxtune.cli.render import is_terminal, sink, write_line
from fluxtune.cli.signals import stop_requests
from fluxtune.config.layers import resolve
from fluxtune.config.schema import Config
from fluxtune.environment.device import quiet_libraries
from fluxtune.errors import DataError, ExitCode, StorageError, UsageError
from fluxtune.events import Event, Progress, Result, Sink
from fluxtune.hub.layouts import CAPTIONERS
from fluxtune.sentences import printable

if TYPE_CHECKING:
    from fluxtune.captioning.undo import Undone
    from fluxtune.captioning.writing import Outcome


_OF_THE_CAPTIONER = ("--captioner", "--existing", "--prompt", "--precision", "--batch-size")


def complete_captioner(incomplete: str) -> list[tuple[str, str]]:
    """Short names of captioners that begin so, with what each is on the hub."""
    return [(name, model) for name, model in CAPTIONERS.items() if name.startswith(incomplete)]


def caption(
    folders: Annotated[
        list[str] | None, typer.Argument(metavar="FOLDER...", help="Folders of pictures.", show_default=False)
    ] = None,
    captioner: Annotated[
        str | None,
        setting_flag(
            "captioning.captioner",
            "--captioner",
            "-m",
            metavar="NAME|ID|FOLDER",
            autocompletion=complete_captioner,
        ),
    ] = None,
    trigger: Trigger = None,
    class_word: ClassWord = None,
    existing: Annotated[
        str | None, setting_flag("captioning.existing", "--existing", metavar="keep|skip|overwrite")
    ] = None,
    prompt: Annotated[str | None, setting_flag("captioning.prompt", "--prompt", metavar="TEXT")] = None,
    prefix: Annotated[str | None, setting_flag("captioning.prefix", "--prefix", metavar="TEXT")] = None,
    suffix: Annotated[str | None, setting_flag("captioning.suffix", "--suffix", metavar="TEXT")] = None,
    template: Annotated[str | None, setting_flag("captioning.template", "--template", metavar="TEXT")] = None,
    precision: Annotated[str | None, setting_flag("captioning.precision", "--precision", metavar="NAME")] = None,
    batch_size: Annotated[str | None, setting_flag("captioning.batch_size", "--batch-size", metavar="N")] = None,
    preset: Preset = None,
    config_file: ConfigFile = None,
    sets: Sets = None,
    review: Annotated[
        bool, typer.Option("--review", help="Show each picture and its caption, and accept, edit or skip it.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the captions; write nothing.")] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Caption, or reword, so many at most.")
    ] = None,
    reword: Annotated[
        bool,
        typer.Option("--reword", help="Ask no captioner: word the captions that there are anew (trigger, prefix...)."),
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Take back what the last captioning of the folder wrote.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Caption the pictures that have no caption yet: a text file beside each.

    Captions that are there are kept. Every caption is on disk before the next is made; run the command again after an
    interruption and it goes on.

    \b
    Examples:
      fluxtune caption photos --trigger zorvex --class-word dog
      fluxtune caption photos --captioner qwen-vl --precision nf4 --dry-run --limit 3
      fluxtune caption photos --captioner florence-2 --review
      fluxtune caption photos --existing overwrite --json > captions.jsonl
      fluxtune caption photos --reword --trigger zorvex --prefix "photo of"
      fluxtune caption photos --undo
    """
    flags = given(
        {
            "captioning.captioner": ("--captioner", captioner),
            "captioning.existing": ("--existing", existing),
            "captioning.prompt": ("--prompt", prompt),
            "captioning.prefix": ("--prefix", prefix),
            "captioning.suffix": ("--suffix", suffix),
            "captioning.template": ("--template", template),
            "captioning.precision": ("--precision", precision),
            "captioning.batch_size": ("--batch-size", batch_size),
            "dataset.trigger": ("--trigger", trigger),
            "dataset.class_word": ("--class-word", class_word),
        }
    )
    if folders:
        flags["dataset.folders"] = ("FOLDER", [{"path": folder} for folder in folders])
    config = resolve(
        preset=preset, config_file=config_file, flags=flags, sets=sets or [], working_folder=Path.cwd()
    ).config
    used = {flag for flag, _ in flags.values()} | ({"--limit"} if limit else set())
    _check(config, used, review=review, reword=reword, undo=undo, dry_run=dry_run, as_json=as_json)
    if undo:
        _undo(config, as_json)
        return
    outcome = _work(config, review, dry_run, limit, reword, as_json)
    if not as_json:
        _show(outcome, dry_run)
    if outcome.counts["failed"]:
        raise typer.Exit(ExitCode.DATA)


def _check(
    config: Config, used: set[str], *, review: bool, reword: bool, undo: bool, dry_run: bool, as_json: bool
) -> None:
    """Refuses what does not go together: nothing that was asked may be passed over.

    Args:
        used: the flags of settings that were given, and `--limit`.
    """
    if not config.dataset.folders:
        raise UsageError(
            "no pictures to caption: wanted a FOLDER, or [[dataset.folders]] in your settings",
            where="fluxtune caption",
            hint="fluxtune caption photos",
        )
    if not dry_run and any(folder.path == "nano:demo" for folder in config.dataset.folders):
        raise UsageError(
            "the demo pictures lie in the installation, which is left as it is",
            where="nano:demo",
            hint="copy them to a folder of your own, and caption that; or look at captions with --dry-run",
        )
    for one, other, both in (
        ("--review", "--json", review and as_json),
        ("--review", "--dry-run", review and dry_run),
        ("--review", "--reword", review and reword),
        ("--undo", "--reword", undo and reword),
        ("--undo", "--review", undo and review),
        ("--undo", "--dry-run", undo and dry_run),
        *(("--undo", flag, undo) for flag in sorted(used - {"FOLDER"})),
        *(("--reword", flag, reword) for flag in _OF_THE_CAPTIONER if flag in used),
    ):
        if both:
            raise UsageError(f"{one} and {other} do not go together", where=one, hint="leave one of them out")
    if review and not (sys.stdin.isatty() and is_terminal(sys.stdout)):
        raise UsageError(
            "--review asks at a terminal, and this is none", where="--review", hint="use --dry-run to look at captions"
        )


def _work(config: Config, review: bool, dry_run: bool, limit: int | None, reword: bool, as_json: bool) -> Outcome:
    again = "run the same command again: it goes on where it was"
    with sink(as_json, bars=not review) as on_event, stop_requests(again) as requests:
        quiet_libraries()
        from fluxtune.captioning import run

        emit = requests.interrupting(on_event)
        if reword:
            outcome = run.reword(config, emit, dry_run, limit)
        elif review:
            from fluxtune.cli.review import Review

            outcome = run.caption(config, _without_progress(emit), Review(), dry_run, limit)
        else:
            outcome = run.caption(config, emit, dry_run=dry_run, limit=limit)
        if as_json:
            on_event(Result("caption", outcome.as_data()))
        return outcome


def _without_progress(on_event: Sink) -> Sink:
    """A person who is asked about each picture sees how far it is."""

    def emit(event: Event) -> None:
        if not isinstance(event, Progress):
            on_event(event)

    return emit


def _show(outcome: Outcome, dry_run: bool) -> None:
    if dry_run:
        for each in outcome.captions:
            write_line(sys.stdout, f"{printable(each.file)}\t{printable(each.caption)}")
        return
    counts = {name: number for name, number in outcome.as_data().items() if number and name != "pictures"}
    told = ", ".join(f"{number} {name}" for name, number in counts.items())
    write_line(sys.stdout, f"{outcome.pictures} pictures: {told}")
    if outcome.folders:
        folders = shlex.join(outcome.folders)
        write_line(sys.stdout, printable(f"to take the captions back: fluxtune caption {folders} --undo"))


def _undo(config: Config, as_json: bool) -> None:
    """Takes back what can be, in all folders, before it tells of what could not be.

    Raises:
        DataError: a folder is not there.
        UsageError: there is nothing to undo in any of them.
        StorageError: something could not be brought back.
    """
    from fluxtune.captioning.undo import undo
    from fluxtune.dataset.folder import folder_path

    roots = dict.fromkeys(folder_path(folder.path) for folder in config.dataset.folders)
    for root in roots:
        if not root.is_dir():
            raise DataError("there is no such folder", where=str(root), hint="check the path", check="no-folder")
    done: dict[Path, Undone] = {}
    endings = [folder.captions for folder in config.dataset.folders if folder.captions.startswith(".")]
    for root in roots:
        if (undone := undo(root, endings)) is not None:
            done[root] = undone
            if not as_json:
                _show_undone(root, undone)
    if as_json:
        with sink(as_json) as on_event:
            on_event(Result("caption", {"undone": {str(root): undone.as_data() for root, undone in done.items()}}))
    if not done:
        raise UsageError(
            "there is no captioning to undo",
            where=shlex.join(map(str, roots)),
            hint="only what `fluxtune caption` wrote in these folders can be undone",
        )
    failed = {root / name: reason for root, undone in done.items() for name, reason in undone.failed.items()}
    if failed:
        file, reason = next(iter(failed.items()))
        raise StorageError(
            f"{len(failed)} captions could not be brought back, the first because: {reason}",
            where=str(file),
            hint="mend that, and run the same command again: nothing is lost",
        )


def _show_undone(root: Path, undone: Undone) -> None:
    text = f"{root}: {len(undone.restored)} captions restored, {len(undone.removed)} removed"
    write_line(sys.stdout, printable(text))
    for name in undone.changed:
        write_line(sys.stderr, printable(f"warning: {root / name}: changed since; left as it is"))
    for name, reason in undone.failed.items():
        write_line(sys.stderr, printable(f"error: {root / name}: {reason}"))
    if undone.old is not None:
        write_line(sys.stderr, printable(f"what they were before the captioning is in {undone.old}"))
