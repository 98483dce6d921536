"""Editing a caption in a review: what comes filled in, and what becomes of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")

_REVIEW = """
import sys
from pathlib import Path
from fluxtune.captioning.writing import Proposal
from fluxtune.cli.review import Review
said = Path("said.txt").read_text(encoding="utf-8")
answer = Review()(Proposal(Path("no.png"), None, said, 1, 1))
Path("answer.txt").write_text(answer, encoding="utf-8")
"""


def edited(said: str, folder: Path) -> tuple[str, bytes]:
    """A caption to whose end a person types a word, and what the terminal got."""
    import pty

    (folder / "said.txt").write_text(said, encoding="utf-8")
    leader, follower = pty.openpty()
    terminal = {"stdin": follower, "stdout": follower, "stderr": follower}
    environment = {**os.environ, "TERM": "xterm", "INPUTRC": "/dev/null", "LC_ALL": "C.UTF-8"}
    process = subprocess.Popen([sys.executable, "-c", _REVIEW], cwd=folder, env=environment, **terminal)
    os.close(follower)
    seen = b""
    deadline = time.monotonic() + 60
    for wanted, typed in ((b"[q]uit: ", b"e\n"), (b"caption: ", b" indoors\n")):
        while wanted not in seen and time.monotonic() < deadline:
            seen += os.read(leader, 4096)
        os.write(leader, typed)
    process.wait(timeout=60)
    seen += os.read(leader, 4096)
    os.close(leader)
    return (folder / "answer.txt").read_text(encoding="utf-8"), seen


@pytest.mark.parametrize("said", ["\U0001f468\u200d\U0001f469\u200d\U0001f467 at a table", "\u05d0\u200f, a sign"])
def test_signs_that_join_and_turn_letters_outlive_an_edit(said: str, tmp_path: Path) -> None:
    assert edited(said, tmp_path)[0] == f"{said} indoors"


def test_letters_that_draw_on_terminals_do_not_do_so_in_an_edit(tmp_path: Path) -> None:
    caption, seen = edited("a \x1b[31mdog", tmp_path)
    assert caption.endswith("dog indoors")
    assert b"\x1b[31m" not in seen
