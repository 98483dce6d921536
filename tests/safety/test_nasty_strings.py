"""Names, captions, settings and metadata from strangers change no terminal, no JSON stream and no page."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fluxtune.cli.app import main
from fluxtune.cli.render import write_result

NASTY = (
    "\x1b]0;owned\x07",
    "\x1b[2J\x1b[31mred",
    "\x9b31mred",
    "back\x08\x08\x08and\rover",
    "[red]x[/red][link=https://example.org]y",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "</script><!--",
    "\u202egnp.exe",
    "tab\tand\nline",
    "{0} %s ${HOME} `id` $(id)",
)
FORBIDDEN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters but the line feed, and those that turn the direction of text."""

Command = Callable[[Path, Path, str], list[str]]


def in_name(text: str) -> str:
    """As much of it as a file's name can have."""
    return text.replace("/", "_")


def nasty_photos(folder: Path, text: str) -> Path:
    """A data set whose folder, file names and captions have it, with a damaged picture and a stray caption."""
    photos = folder / f"photos {in_name(text)}"
    photos.mkdir()
    for number in range(2):
        Image.new("RGB", (128, 128), (200, 90 * number, 90)).save(photos / f"{number} {in_name(text)}.png")
        (photos / f"{number} {in_name(text)}.txt").write_text(f"a cup {text}", encoding="utf-8")
    (photos / f"damaged {in_name(text)}.png").write_bytes(b"no picture")
    (photos / f"stray {in_name(text)}.txt").write_text(text, encoding="utf-8")
    return photos


def nasty_lora(folder: Path, text: str) -> Path:
    """A LoRA that has it in its name, its metadata and the names of its tensors."""
    file = folder / f"{in_name(text)}.safetensors"
    tensors = {f"transformer.{text}.lora_{half}.weight": torch.ones(4, 4) for half in "AB"}
    save_file(tensors, file, metadata={key: text for key in ("ss_output_name", "ss_sd_model_name", "modelspec.title")})
    return file


def nasty_config(folder: Path, text: str) -> Path:
    """Settings that have it as values and as keys."""
    file = folder / f"{in_name(text)}.toml"
    quoted = json.dumps(text)
    lines = [f"{quoted} = 1", "[model]", f"base = {quoted}", "[training]", f"{quoted} = 1", f"optimizer = {quoted}"]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


COMMANDS: dict[str, Command] = {
    "validate": lambda folder, base, text: ["validate", str(nasty_photos(folder, text))],
    "validate --fix": lambda folder, base, text: [
        "validate", str(nasty_photos(folder, text)), "--fix", str(folder / "fixed"),
    ],
    "caption --dry-run": lambda folder, base, text: [
        "caption", str(nasty_photos(folder, text)), "--dry-run", "--set", f"captioning.captioner={json.dumps(text)}",
    ],
    "train": lambda folder, base, text: ["train", str(nasty_photos(folder, text)), "--base", str(base)],
    "train, no base": lambda folder, base, text: [
        "train", str(nasty_photos(folder, text)), "--base", text, "--accept", "data",
    ],
    "train --init-from": lambda folder, base, text: [
        "train", str(folder), "--base", str(base), "--init-from", str(nasty_lora(folder, text)),
    ],
    "train --config": lambda folder, base, text: ["train", str(folder), "--config", str(nasty_config(folder, text))],
    "train --set": lambda folder, base, text: ["train", str(folder), "--set", f"{text}={text}"],
    "train --name": lambda folder, base, text: ["train", str(folder), "--name", text],
    "train --resume": lambda folder, base, text: ["train", "--resume", str(folder / in_name(text))],
    "train --explain": lambda folder, base, text: [
        "train", str(nasty_photos(folder, text)), "--trigger", text, "--explain",
    ],
    "sample --lora": lambda folder, base, text: [
        "sample", text, "--base", str(base), "--lora", str(nasty_lora(folder, text)),
    ],
    "sample --prompts": lambda folder, base, text: ["sample", "--prompts", str(folder / in_name(text))],
    "export": lambda folder, base, text: [
        "export", "dataset", str(nasty_photos(folder, text)), "--accept", "data", "--format", "kohya", "--output",
        str(folder / "copy"),
    ],
    "no command": lambda folder, base, text: [text],
    "no option": lambda folder, base, text: ["train", f"--{text}"],
    "no preset": lambda folder, base, text: ["train", "--preset", text],
}  # fmt: skip


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_shows_a_control_character_or_breaks_its_json(
    tmp_path: Path,
    tiny_flux: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for flag in ((), ("--json",)):
        folder = tmp_path / ("json" if flag else "text")
        folder.mkdir()
        arguments = COMMANDS[command](folder, tiny_flux, text)
        assert main([*arguments, *flag]) != 1
        out, err = capsys.readouterr()
        for stream in (err, "" if flag else out):
            assert not FORBIDDEN.search(stream)
        for line in out.splitlines() if flag and command not in ("no command",) else ():
            assert json.loads(line)["schema"] == 1


@pytest.mark.parametrize("text", NASTY)
def test_a_page_of_nasty_pictures_is_data_and_no_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["validate", str(nasty_photos(tmp_path, text)), "--report", "page.html"])
    page, plain = (tmp_path / "page.html").read_text(encoding="utf-8"), tmp_path / "plain"
    plain.mkdir()
    main(["validate", str(nasty_photos(plain, "plain")), "--report", "plain.html"])
    assert elements_of(page) == elements_of((tmp_path / "plain.html").read_text(encoding="utf-8"))


def elements_of(page: str) -> list[tuple[str, tuple[str, ...]]]:
    """What a browser would make of a page before its scripts run: elements, and the names of their attributes."""

    class Elements(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[tuple[str, tuple[str, ...]]] = []

        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            self.found.append((tag, tuple(name for name, _ in attributes)))

        def handle_comment(self, data: str) -> None:
            self.found.append(("comment", ()))

    parser = Elements()
    parser.feed(page)
    return parser.found


def test_the_pages_script_makes_text_of_data_and_never_markup() -> None:
    from importlib.resources import files

    template = files("fluxtune.report").joinpath("data_page.html").read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", template)


@pytest.mark.parametrize("text", NASTY)
def test_a_runs_record_has_no_control_character(
    tmp_path: Path, tiny_flux: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    from fluxtune.events import Preview, RunStarted, Warning
    from fluxtune.runs import Run

    run = Run.create(tmp_path / "run", "", {}, {})
    for event in (
        RunStarted(text, text, 1, {"name": text, text: 1}),
        Warning(text, where=text, hint=text),
        Preview(1, text, 7, text),
    ):
        run.append(event)
    for name in ("events.jsonl", "log.txt"):
        content = (run.folder / name).read_text(encoding="utf-8")
        assert not FORBIDDEN.search(content)
        # A warning's hint has a line of its own in the log.
        assert len(content.splitlines()) == (3 if name == "events.jsonl" else 4)
    first = json.loads((run.folder / "events.jsonl").read_text().splitlines()[0])
    assert (first["run"], first["config"]["name"]) == (text, text)


@pytest.mark.parametrize("text", NASTY)
def test_a_result_is_exact_in_a_pipe_and_harmless_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    write_result(text)
    assert capsys.readouterr().out == f"{text}\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    write_result(text)
    assert not FORBIDDEN.search(capsys.readouterr().out)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../x",
            "/x",
            "a/b",
            "a\\b",
            "..",
            ".",
            ".x",
            "-x",
            "a\0b",
            "a\nb",
            "x\n",
            "\x1b[31m",
            "C:x",
            "x" * 101,
            "é",
            "~",
        ),
        *("con", "NUL", "Com1", "lpt9", "aux.x", "prn.tar.gz"),
    ],
)
def test_a_name_that_is_no_plain_file_name_everywhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--preset", "nano", "--name", name]) == 2
    assert "name" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
