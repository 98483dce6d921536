from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from faults import injected
from safetensors.torch import save_file

from fluxtune import files
from fluxtune.errors import ExitCode, StorageError


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Inside, no file can grow beyond ``size`` bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "a" / "b" / "c.bin", b"content")
    assert (tmp_path / "a" / "b" / "c.bin").read_bytes() == b"content"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    files.write_text(path, "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half of the ne")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        files.write_with(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders")
def test_what_is_no_file_is_never_replaced_by_one(tmp_path: Path) -> None:
    """The superuser may replace a device as well, and with it what every program relies on."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(StorageError, match="not a file") as error:
            files.write_text(path, "page")
        assert error.value.where == str(path)
    assert stat.S_ISFIFO(pipe.lstat().st_mode) and link.is_symlink()
    assert sorted(tmp_path.iterdir()) == [link, pipe]


def test_readers_never_see_a_file_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    files.write_text(path, "old")

    def look(temporary: Path) -> None:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent

    files.write_with(path, look)
    assert path.read_text() == "new"


def test_json_is_indented_utf8_with_a_last_newline(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"name": "Süßes"})
    content = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert content == '{\n  "name": "Süßes"\n}\n'
    assert json.loads(content) == {"name": "Süßes"}


def test_a_full_disk_is_a_storage_error_that_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    files.write_bytes(path, b"old")
    with largest_file(1000), pytest.raises(StorageError) as error:
        files.write_bytes(path, b"x" * 5000)
    assert error.value.where == str(path)
    assert error.value.exit_code == ExitCode.STORAGE
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_up_under_the_tensors_is_a_storage_error_too(tmp_path: Path) -> None:
    path = tmp_path / "mug.safetensors"
    with largest_file(1000), pytest.raises(StorageError) as error:
        files.write_with(path, lambda temporary: save_file({"a": torch.ones(5000)}, temporary))
    assert error.value.where == str(path)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="cannot write or read the file") as error:
        files.write_text(tmp_path / "file" / "a.txt", "text")
    assert error.value.where == str(tmp_path / "file" / "a.txt")


def test_lines_are_appended_whole(tmp_path: Path) -> None:
    files.append_line(tmp_path / "events.jsonl", "é" * 10_000)
    files.append_line(tmp_path / "events.jsonl", "second")
    lines = (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines == ["é" * 10_000, "second"]


def test_a_line_after_one_that_a_kill_cut_short_begins_afresh(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st')
    files.append_line(path, '{"step": 3}')
    assert path.read_bytes() == b'{"step": 1}\n{"st\n{"step": 3}\n'


def test_json_lines_are_the_objects_of_a_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    whole = b'{"file": "1.png"}\n\n[1, 2]\n"text"\nnull\n{"file": "\xff\xfe"}\n' + b"[" * 100_000 + b"\n"
    path.write_bytes(whole + '{"file": "Süßes\u2028.png"}\n'.encode() + b'{"file": "3.p')
    assert list(files.json_lines(path)) == [{"file": "1.png"}, {"file": "Süßes\u2028.png"}]


def test_a_file_that_does_not_exist_has_no_json_lines(tmp_path: Path) -> None:
    assert list(files.json_lines(tmp_path / "journal.jsonl")) == []


def test_json_lines_that_cannot_be_read_are_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write or read"):
        list(files.json_lines(tmp_path))


def test_the_hash_is_the_contents_sha256(tmp_path: Path) -> None:
    content = b"0123456789" * 300_000
    (tmp_path / "a.bin").write_bytes(content)
    assert files.sha256_of(tmp_path / "a.bin") == hashlib.sha256(content).hexdigest()
    with pytest.raises(StorageError):
        files.sha256_of(tmp_path / "absent")


def test_work_that_does_not_fit_on_the_disk_is_refused_with_both_sizes(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    files.require_space(tmp_path / "not" / "yet", 1, "the latents")
    with pytest.raises(StorageError, match=r"the latents need .* GiB of disk, but only .* GiB are free"):
        files.require_space(tmp_path / "not" / "yet", free + 2**40, "the latents")


def test_writing_anew_keeps_the_permissions_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    file.chmod(0o600)
    files.write_text(file, "new")
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_name_as_long_as_the_system_takes_can_be_written(tmp_path: Path) -> None:
    file = tmp_path / ("n" * 255)
    files.write_text(file, "text")
    assert file.read_text() == "text"


def test_what_small_disks_lack_is_said_in_mebibytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**20, 0, 300 * 2**10))
    with pytest.raises(StorageError, match=r"need 5\.0 MiB of disk, but only 0\.3 MiB are free"):
        files.require_space(tmp_path, 5 * 2**20, "the latents")


def test_a_line_that_does_not_fit_on_the_disk_leaves_nothing_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    files.append_line(path, "first")
    with largest_file(100), pytest.raises(StorageError):
        files.append_line(path, "x" * 500)
    assert path.read_text() == "first\n"


def test_lines_that_could_not_be_written_are_told_once_and_come_first_when_it_works_again(tmp_path: Path) -> None:
    lines = files.PatientLines(tmp_path / "events.jsonl")
    assert lines.add("1") is None
    with injected(tmp_path, 0, errno.ENOSPC, lasting=True):
        told = [lines.add("2"), lines.add("3")]
    assert [error is not None for error in told] == [True, False]
    assert lines.add("4") is None
    assert (tmp_path / "events.jsonl").read_text() == "1\n2\n3\n4\n"


def test_of_very_many_lines_that_could_not_be_written_the_last_ones_wait(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()
    lines = files.PatientLines(tmp_path / "events.jsonl", most=2)
    for text in ("1", "2", "3"):
        lines.add(text)
    (tmp_path / "events.jsonl").rmdir()
    lines.add("4")
    assert (tmp_path / "events.jsonl").read_text() == "3\n4\n"


def test_a_sealed_file_gives_back_what_was_written_and_tells_any_change_of_a_byte(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    value = {"name": "Süßes", "steps": [1, 2.5, None], "inner": {"a": True}}
    files.write_sealed(path, value)
    assert files.read_sealed(path) == value
    content = path.read_bytes()
    for place in range(len(content)):
        for other in (content[place] ^ 1, content[place] ^ 0x80, ord(" ")):
            path.write_bytes(content[:place] + bytes([other]) + content[place + 1 :])
            if path.read_bytes() != content:
                with pytest.raises(ValueError):
                    files.read_sealed(path)


def test_only_what_can_pass_is_worth_waiting_for() -> None:
    def failed(number: int) -> StorageError:
        with pytest.raises(StorageError) as error, files.storage_errors(Path("file")):
            raise OSError(number, "it failed")
        return error.value

    assert all(map(files.waiting_helps, map(failed, (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE))))
    assert not any(map(files.waiting_helps, map(failed, (errno.EACCES, errno.EROFS, errno.ENOENT, errno.ENAMETOOLONG))))
    assert not files.waiting_helps(StorageError("damaged"))


def test_a_file_system_that_does_not_sync_folders_is_written_all_the_same(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a.txt", "text")
    with injected(tmp_path) as faults:
        files.write_text(tmp_path / "a.txt", "text")
    folder_synced = faults.seen.index("fsync .")
    with injected(tmp_path, folder_synced, errno.EINVAL):
        files.write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
