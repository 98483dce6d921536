"""Locks: who may hold one, and what is made of one that nobody holds any more."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
from itertools import product
from pathlib import Path
from typing import NoReturn

import pytest
from faults import Killed, injected

from fluxtune.errors import StorageError
from fluxtune.locks import held


def test_a_lock_that_is_just_being_written_is_left_to_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "lock"
    with held(lock, "folder"):
        owner = lock.read_text()
    lock.touch()
    # It is written while the other one waits for that.
    monkeypatch.setattr("fluxtune.locks.time.sleep", lambda _: lock.write_text(owner))
    with pytest.raises(StorageError, match="being written by process"), held(lock, "folder"):
        pass
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


def test_the_lock_in_a_copy_of_a_folder_is_not_that_of_the_process_that_writes_the_original(tmp_path: Path) -> None:
    original, copy = tmp_path / "run" / "lock", tmp_path / "copy" / "lock"
    original.parent.mkdir()
    with held(original, "run"):
        shutil.copytree(original.parent, copy.parent)
        with held(copy, "run"):
            assert json.loads(copy.read_text())["path"] == str(copy)
        assert original.exists()


def test_the_lock_of_a_folder_that_was_renamed_meanwhile_is_still_held(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with held(tmp_path / "run" / "lock", "run"):
        (tmp_path / "run").rename(tmp_path / "other")
        with pytest.raises(StorageError, match="being written by process"), held(tmp_path / "other" / "lock", "run"):
            pass


def test_a_lock_of_another_machine_is_respected_wherever_it_was_made(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with held(lock, "run"):
        owner = json.loads(lock.read_text())
    lock.write_text(json.dumps({**owner, "host": "elsewhere", "path": "/mnt/shared/lock", "file": "1:2"}))
    with pytest.raises(StorageError, match="another machine, elsewhere") as caught, held(lock, "run"):
        pass
    assert "remove the lock file" in str(caught.value.hint)


def test_a_lock_that_cannot_be_written_leaves_none(tmp_path: Path) -> None:
    with injected(tmp_path) as faults, held(tmp_path / "lock", "run"):
        pass
    for number, error in product(range(len(faults.seen)), (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO)):
        try:
            with injected(tmp_path, number, error), held(tmp_path / "lock", "run"):
                pass
        except StorageError as failure:
            assert failure.where == str(tmp_path / "lock")
            assert failure.hint
            assert not (tmp_path / "lock").exists()
        (tmp_path / "lock").unlink(missing_ok=True)


def test_a_lock_of_a_killed_process_is_taken_over_wherever_it_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluxtune.locks._WRITING", 0.0)
    with injected(tmp_path) as faults, held(tmp_path / "lock", "run"):
        pass
    for number in range(len(faults.seen)):
        with pytest.raises(Killed), injected(tmp_path, number), held(tmp_path / "lock", "run"):
            pass
        if (tmp_path / "lock").exists() and (text := (tmp_path / "lock").read_text()).endswith("}"):
            (tmp_path / "lock").write_text(json.dumps({**json.loads(text), "started": 1.0}))
        with held(tmp_path / "lock", "run"):
            assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
