"""Locks: who may hold one, and what is made of one that nobody holds any more."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import NoReturn

import pytest

from fluxtune.errors import StorageError
from fluxtune.locks import held


def test_a_lock_that_is_just_being_written_is_left_to_its_owner(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with held(lock, "folder"):
        owner = lock.read_text()
    lock.touch()

    def write() -> None:
        time.sleep(0.1)
        lock.write_text(owner)

    writer = threading.Thread(target=write)
    writer.start()
    with pytest.raises(StorageError, match="being written by process"), held(lock, "folder"):
        pass
    writer.join()
    assert lock.read_text() == owner


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"[" * 100_000])
def test_a_lock_that_was_cut_off_is_taken_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lock").write_bytes(content)
    with held(tmp_path / "lock", "folder"):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_link_to_nothing_in_place_of_a_lock_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "gone")
    with held(tmp_path / "lock", "folder"):
        assert not (tmp_path / "lock").is_symlink()


def test_a_folder_in_place_of_a_lock_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(StorageError, match="cannot lock the folder: is a directory"), held(tmp_path / "lock", "folder"):
        pass


def test_a_dead_lock_that_cannot_be_cleared_away_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = {"pid": 2**22 + 1, "started": 1.0, "boot": "before", "host": socket.gethostname()}
    (tmp_path / "lock").write_text(json.dumps(dead))

    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(StorageError, match="read-only") as caught, held(tmp_path / "lock", "folder"):
        pass
    assert caught.value.where == str(tmp_path / "lock")


def test_a_folder_that_is_gone_when_the_work_is_done_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    with held(tmp_path / "inner" / "lock", "folder"):
        (tmp_path / "inner" / "lock").unlink()
        (tmp_path / "inner").rmdir()
        (tmp_path / "inner").touch()
