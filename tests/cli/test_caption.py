"""`fluxtune caption` with the embedded captioner: streams, exit codes, interruption, review at a terminal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from interruption import interrupted_here
from PIL import Image

from fluxtune.captioning.writing import Proposal
from fluxtune.cli.review import Review
from fluxtune.cli.thumbnail import COLUMNS, half_blocks
from fluxtune.nano.painter import paint
from fluxtune.nano.scenes import subject_scene

Fluxtune = Callable[..., Any]
NANO = ("--captioner", "nano", "--trigger", "zorvex", "--class-word", "critter")


def paint_pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        paint(subject_scene(3, index)).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return paint_pictures(tmp_path / "photos", 3)


def test_captions_stand_beside_the_pictures_with_the_trigger(fluxtune: Fluxtune, photos: Path) -> None:
    outcome = fluxtune("caption", "photos", *NANO)
    assert outcome.code == 0
    assert outcome.out == f"3 pictures: 3 written\nto take the captions back: fluxtune caption {photos} --undo\n"
    for index in range(3):
        scene = subject_scene(3, index)
        caption = (photos / f"{index}.txt").read_text()
        assert "zorvex" in caption.split()
        assert caption.endswith(f"{scene.background.kind} {scene.background.colour} background\n")
        assert f"{index}.png: {caption}" in outcome.err


def test_programs_read_a_caption_a_line_and_the_counts_last(fluxtune: Fluxtune, photos: Path) -> None:
    records = fluxtune("caption", "photos", *NANO, "--json").records()
    captions = [record for record in records if record["event"] == "caption"]
    assert [record["picture"] for record in captions] == ["0.png", "1.png", "2.png"]
    assert all(Path(record["file"]).read_text() == record["caption"] + "\n" for record in captions)
    progress = [record for record in records if record["event"] == "progress"]
    assert progress[-1]["done"] == 3
    assert progress[0]["seconds_left"] > 0
    assert records[-1]["event"] == "result"
    assert records[-1]["data"] == {
        "pictures": 3, "written": 3, "proposed": 0, "kept": 0, "declined": 0, "failed": 0, "waiting": 0,
    }  # fmt: skip


def test_a_dry_run_gives_lines_that_can_be_piped(fluxtune: Fluxtune, photos: Path) -> None:
    outcome = fluxtune("caption", "photos", *NANO, "--dry-run", "--limit", "2")
    lines = [line.split("\t") for line in outcome.out.splitlines()]
    assert [line[0] for line in lines] == [str(photos / "0.txt"), str(photos / "1.txt")]
    assert all("zorvex" in line[1] for line in lines)
    assert list(photos.glob("*.txt")) == []


def test_the_demo_pictures_are_captioned_in_a_dry_run(fluxtune: Fluxtune) -> None:
    outcome = fluxtune("caption", "--preset", "nano", "--dry-run", "--limit", "2")
    assert outcome.code == 0
    assert [line.count("zorvex") for line in outcome.out.splitlines()] == [1, 1]


def test_folders_on_the_command_line_win_over_the_demo_of_the_preset(fluxtune: Fluxtune, photos: Path) -> None:
    outcome = fluxtune("caption", "photos", "--preset", "nano", *NANO, "--dry-run", "--limit", "1")
    assert outcome.out.startswith(f"{photos / '0.txt'}\t")


def test_a_limit_holds_for_rewording_too(fluxtune: Fluxtune, photos: Path) -> None:
    for index in range(3):
        (photos / f"{index}.txt").write_text("a dog")
    outcome = fluxtune("caption", "photos", "--reword", "--prefix", "photo of", "--limit", "2")
    assert outcome.out.startswith("3 pictures: 2 written, 1 waiting\n")
    assert (photos / "2.txt").read_text() == "a dog"


@pytest.mark.skipif(os.name == "nt", reason="no such file names")
def test_a_line_break_in_the_name_of_a_file_breaks_no_line(fluxtune: Fluxtune, photos: Path) -> None:
    (photos / "0.png").rename(photos / "0\n\t0.png")
    outcome = fluxtune("caption", "photos", *NANO, "--dry-run", "--limit", "1")
    assert outcome.out.startswith(f"{photos}/0\\n\\t0.txt\t")
    assert len(outcome.out.splitlines()) == 1
    assert "\n0\\n\\t0.png: " in outcome.err


def test_a_caption_that_cannot_be_read_gives_exit_code_3(fluxtune: Fluxtune, photos: Path) -> None:
    (photos / "0.txt").write_bytes(b"\xff\xfe")
    assert fluxtune("caption", "photos", *NANO).out.startswith("3 pictures: 2 written, 1 failed\n")
    assert fluxtune("caption", "photos", *NANO).code == 3
    assert fluxtune("caption", "photos", "--reword", "--prefix", "photo of").code == 3


def test_undo_is_told_and_a_second_one_has_nothing_left(fluxtune: Fluxtune, photos: Path) -> None:
    fluxtune("caption", "photos", *NANO)
    outcome = fluxtune("caption", "photos", "--undo")
    assert outcome.out == f"{photos}: 0 captions restored, 3 removed\n"
    again = fluxtune("caption", "photos", "--undo")
    assert again.code == 2
    assert "hint: only what `fluxtune caption` wrote" in again.err


def test_a_damaged_picture_gives_exit_code_3_after_the_others_are_captioned(fluxtune: Fluxtune, photos: Path) -> None:
    (photos / "1.png").write_bytes(b"no picture")
    outcome = fluxtune("caption", "photos", *NANO)
    assert outcome.code == 3
    assert "1.png" in outcome.err
    assert (photos / "2.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no pictures to caption"),
        (("none",), "there is no such folder"),
        (("photos", "--review"), "asks at a terminal"),
        (("photos", "--undo", "--dry-run"), "do not go together"),
        (("photos", "--review", "--reword"), "do not go together"),
        (("photos", "--undo", "--limit", "1"), "--undo and --limit do not go together"),
        (("photos", "--undo", "--trigger", "zorvex"), "--undo and --trigger do not go together"),
        (("photos", "--undo", "--existing", "keep"), "--undo and --existing do not go together"),
        (("photos", "--reword", "--captioner", "nano"), "--reword and --captioner do not go together"),
        (("photos", "--reword", "--prompt", "a"), "--reword and --prompt do not go together"),
        (("photos", "--reword", "--precision", "nf4"), "--reword and --precision do not go together"),
        (("photos", "--reword", "--batch-size", "4"), "--reword and --batch-size do not go together"),
        (("photos", "--reword", "--existing", "overwrite"), "--reword and --existing do not go together"),
        (("--preset", "nano", "--undo"), "lie in the installation"),
        (("--preset", "nano", "--reword"), "lie in the installation"),
        (("photos", "--template", "{typo}"), "no placeholder {typo}"),
        (("photos", "--existing", "perhaps"), "captioning.existing"),
        (("photos", "--trigger", "  "), "dataset.trigger is"),
        (("photos", "--captioner", "photos"), "not a model folder"),
        (("photos", "--captioner", "sharks"), "no such captioner"),
        (("--preset", "nano"), "lie in the installation"),
    ],
)
def test_what_cannot_work_is_one_clear_error(
    fluxtune: Fluxtune, photos: Path, arguments: tuple[str, ...], message: str
) -> None:
    outcome = fluxtune("caption", *arguments)
    assert outcome.code in (2, 3, 5)
    assert message in outcome.err
    assert "hint:" in outcome.err
    assert list(photos.parent.rglob("*.txt")) == []


def test_a_hub_captioner_that_cannot_be_reached_is_told_with_what_to_do(
    fluxtune: Fluxtune, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = fluxtune("caption", "photos", "--captioner", "qwen-vl", "--set", "model.offline=true")
    assert outcome.code == 5
    assert "the captioner Qwen/Qwen2.5-VL-7B-Instruct is needed and the network is switched off" in outcome.err
    assert not (photos / ".fluxtune-captions").exists()


def test_letters_that_draw_on_terminals_are_shown_as_escapes(fluxtune: Fluxtune, photos: Path) -> None:
    (photos / "0.txt").write_text("a \x1b[31m dog")
    outcome = fluxtune("caption", "photos", "--reword", "--prefix", "photo of")
    assert "\x1b" not in outcome.err + outcome.out
    assert "\\x1b[31m" in outcome.err


_KILLED_AT_THE_THIRD = """
import signal, sys
from pathlib import Path
from interruption import interrupted_here

told = []

def is_third(event):
    told.append(event["event"])
    return told.count("caption") == 3

interrupted_here(sys.argv[1:], Path.cwd(), is_third, signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such signal there")
def test_a_killed_captioning_goes_on_and_loses_nothing(tmp_path: Path, fluxtune: Fluxtune) -> None:
    photos = paint_pictures(tmp_path / "many", 8)
    files = [photos / f"{index}.txt" for index in range(8)]
    for file in files:
        file.write_text("old")
    arguments = ["caption", "many", *NANO, "--existing", "overwrite", "--batch-size", "1", "--json"]
    code = f"import sys; sys.path[:0] = {sys.path!r}\n{_KILLED_AT_THE_THIRD}"
    killed = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = [file.read_text() for file in files].count("old")
    assert left == 5
    assert fluxtune(*arguments).records()[-1]["data"]["written"] == left
    assert "old" not in [file.read_text() for file in files]
    fluxtune("caption", "many", "--undo")
    assert {file.read_text() for file in files} == {"old"}


def test_ctrl_c_keeps_what_is_written_and_says_how_to_go_on(tmp_path: Path) -> None:
    photos = paint_pictures(tmp_path / "many", 60)
    arguments = ["caption", "many", *NANO, "--batch-size", "1", "--json"]
    code, out = interrupted_here(arguments, tmp_path, lambda record: record["event"] == "caption")
    assert code == 130
    error = json.loads(out.splitlines()[-1])
    assert error["event"] == "error"
    assert error["hint"] == "run the same command again: it goes on where it was"
    assert 0 < len(list(photos.glob("*.txt"))) < 60


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_a_review_at_a_terminal_accepts_edits_skips_and_ends(photos: Path) -> None:
    import pty

    (photos / "3.png").write_bytes((photos / "2.png").read_bytes())
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "fluxtune", "caption", "photos", *NANO, "--review"],
        cwd=photos.parent,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "INPUTRC": "/dev/null"},
    )
    os.close(follower)
    seen = b""

    def answer(text: bytes, after: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 60
        while after not in seen and time.monotonic() < deadline:
            seen += os.read(leader, 4096)
        assert after in seen, seen
        seen = seen.partition(after)[2]
        os.write(leader, text)

    answer(b"\n", b"[q]uit: ")
    answer(b"e\n", b"[q]uit: ")
    answer(b" beside a tree\n", b"caption: ")
    answer(b"s\n", b"[q]uit: ")
    answer(b"q\n", b"[q]uit: ")
    process.wait(timeout=60)
    assert process.returncode == 0
    assert "zorvex" in (photos / "0.txt").read_text()
    assert (photos / "1.txt").read_text().endswith(" background beside a tree\n")
    assert not (photos / "2.txt").exists()
    assert not (photos / "3.txt").exists()
    os.close(leader)


def test_a_review_says_how_far_it_is(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "")
    assert Review()(Proposal(photos / "1.png", None, "a dog", number=3, total=20)) == "a dog"
    assert capsys.readouterr().out.startswith(f"\n3 of 20: {photos / '1.png'}\n")


def test_half_blocks_show_the_picture_in_few_characters() -> None:
    picture = Image.new("RGB", (300, 100), (255, 0, 0))
    picture.paste((0, 0, 255), (0, 50, 300, 100))
    lines = list(half_blocks(picture))
    assert all(line.count("▀") == COLUMNS for line in lines)
    assert lines[0].startswith("\x1b[38;2;255;0;0")
    assert "48;2;0;0;255" in lines[-1]


def test_completion_of_captioners_and_help_need_no_torch() -> None:
    code = (
        "import sys; from fluxtune.cli.caption import complete_captioner;"
        "assert complete_captioner('blip')[0][0] == 'blip';"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'diffusers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_session_file_says_what_was_asked(fluxtune: Fluxtune, photos: Path) -> None:
    fluxtune("caption", "photos", *NANO)
    asked = json.loads((photos / ".fluxtune-captions" / "001" / "session.json").read_text())
    assert asked["captioner"] == "nano"
    assert asked["trigger"] == "zorvex"


def test_undo_takes_back_what_there_is_in_any_of_several_folders(fluxtune: Fluxtune, photos: Path) -> None:
    other = shutil.copytree(photos, photos.parent / "other")
    assert fluxtune("caption", "photos", *NANO).code == 0
    assert fluxtune("caption", "other", "photos", "--undo").code == 0
    assert not [*photos.glob("*.txt"), *other.glob("*.txt")]
    assert fluxtune("caption", "other", "photos", "--undo").code == 2


def test_only_folders_in_which_captions_were_written_are_named_for_undo(fluxtune: Fluxtune, photos: Path) -> None:
    shutil.copytree(photos, photos.parent / "other")
    fluxtune("caption", "photos", *NANO)
    outcome = fluxtune("caption", "photos", "other", *NANO)
    assert f"fluxtune caption {photos.parent / 'other'} --undo" in outcome.out
