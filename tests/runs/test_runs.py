from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxtune import files, manifests
from fluxtune.errors import ConfigError, ExitCode, Stopped, StorageError, UsageError
from fluxtune.events import Error, Phase, Result, Step, Warning, as_record
from fluxtune.manifests import verify_manifest, write_manifest
from fluxtune.runs import Run, latest_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "runs" / "cat", "name = 'cat'\n", {"name": "--name"}, {"device": "cpu"})


@pytest.fixture
def writer(run: Run) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of ``run`` until it is killed."""
    code = """
        import sys, time
        from pathlib import Path
        from fluxtune.runs import Run
        with Run.open(Path(sys.argv[1])).locked():
            print("locked", flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(run.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def checkpoint(run: Run, step: int) -> Path:
    folder = run.checkpoint_folder(step)
    (folder / "state").mkdir(parents=True)
    (folder / "cat.safetensors").write_bytes(b"weights")
    (folder / "state" / "optimizer.safetensors").write_bytes(b"moments")
    names = ("cat.safetensors", "state/optimizer.safetensors")
    write_manifest(folder, {name: files.sha256_of(folder / name) for name in names})
    return folder


def test_a_new_run_keeps_its_configuration_and_says_that_it_is_running(run: Run) -> None:
    again = Run.open(run.folder)
    assert again.state == run.state
    assert (again.state.status, again.state.step, again.state.facts) == ("running", 0, {"device": "cpu"})
    assert again.config_path.read_text() == "name = 'cat'\n"
    assert json.loads((run.folder / "origins.json").read_text()) == {"name": "--name"}


def test_an_existing_folder_is_never_taken_for_a_new_run(run: Run) -> None:
    before = sorted(run.folder.iterdir())
    with pytest.raises(StorageError, match="exists already") as error:
        Run.create(run.folder, "name = 'dog'\n", {}, {})
    assert f"--resume {run.folder}" in (error.value.hint or "")
    assert sorted(run.folder.iterdir()) == before
    assert run.config_path.read_text() == "name = 'cat'\n"


def test_a_folder_that_holds_no_run_is_not_offered_to_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="exists already") as error:
        Run.create(tmp_path, "", {}, {})
    assert error.value.hint == "choose another --output"


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "a\udcff", "a\u202eb"])
def test_a_run_folder_whose_name_is_no_text_is_refused_also_when_it_was_renamed(run: Run, name: str) -> None:
    folder = run.folder.with_name(name)
    with pytest.raises(StorageError, match="the name of the run folder is no text") as error:
        Run.create(folder, "", {}, {})
    (error.value.where or "").encode("utf-8")
    run.folder.rename(folder)
    with pytest.raises(StorageError, match="the name of the run folder is no text"), Run.open(folder).locked():
        pass


def test_a_run_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot make the run folder"):
        Run.create(tmp_path / "file" / "run", "", {}, {})


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_of_another_kind_is_not_opened_as_a_run(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "pictures"
    if exists:
        folder.mkdir()
    with pytest.raises(UsageError, match="holds no run.json" if exists else "does not exist"):
        Run.open(folder)


def test_a_run_of_another_schema_is_refused(run: Run) -> None:
    path = run.folder / "run.json"
    files.write_sealed(path, {**files.read_sealed(path), "schema": 99, "news": 1})
    with pytest.raises(StorageError, match="schema 99"):
        Run.open(run.folder)


def test_a_damaged_run_json_is_made_again_and_said(run: Run) -> None:
    (run.folder / "run.json").write_text('{"schema": 1, "sta')
    again = Run.open(run.folder)
    assert again.trouble is not None
    assert "run.json is damaged" in again.trouble.message
    assert again.trouble.where == str(run.folder / "run.json")
    assert (again.state.status, again.state.step, again.state.checkpoint) == ("running", 0, None)


def test_progress_of_a_run_is_found_again_when_it_is_opened(run: Run) -> None:
    run.update(status="finished", step=1500, checkpoint="checkpoints/step-001500", result="cat.safetensors")
    state = Run.open(run.folder).state
    assert (state.status, state.step, state.result) == ("finished", 1500, "cat.safetensors")
    assert state.created == run.state.created


def test_events_are_json_lines_and_log_lines(run: Run) -> None:
    run.append(Phase("load", "loading naïve.safetensors"))
    run.append(Step(1, 10, 0.25, 1e-4, 1.5, 2.0, 4.5, 1.0))
    records = [json.loads(line) for line in (run.folder / "events.jsonl").read_text("utf-8").splitlines()]
    assert [record["event"] for record in records] == ["phase", "step"]
    assert records[1]["loss"] == 0.25
    log = (run.folder / "log.txt").read_text("utf-8").splitlines()
    assert log[0] == f"{records[0]['time']} load: loading naïve.safetensors"
    assert log[1] == f"{records[1]['time']} step 1/10  loss 0.2500  lr 1.0e-04  2.0 steps/s  0:04 left  1.0 GiB"


def said(run: Run) -> list[str]:
    """The lines of ``log.txt`` without their times."""
    return [line.partition(" ")[2] for line in (run.folder / "log.txt").read_text("utf-8").splitlines()]


def test_the_log_has_warnings_the_result_and_the_end_with_hints_and_no_control_characters(run: Run) -> None:
    run.append(Warning("od\x1b[31md", where="a\nb.png", hint="mend it"))
    run.append(Result("train", {"file": "cat\x07.safetensors"}))
    run.append(Error.of(StorageError("the disk\r is full", where="cat", hint="free some space")))
    run.append(Error.of(Stopped("stopped after step 2", ExitCode.TERMINATED, hint="go on")))
    run.append(Error.of(ConfigError([UsageError("one is wrong"), UsageError("two is wrong", hint="mend both")])))
    assert said(run) == [
        "warning: a\\nb.png: od\\x1b[31md",
        "hint: mend it",
        "result: cat\\x07.safetensors",
        "error: cat: the disk\\r is full",
        "hint: free some space",
        "stopped: stopped after step 2",
        "hint: go on",
        "error: one is wrong",
        "error: two is wrong",
        "hint: mend both",
    ]


def test_an_event_of_earlier_keeps_its_time(run: Run) -> None:
    run.append(Phase("load"), as_record(Phase("load")) | {"time": "2026-01-01T00:00:00.000+00:00"})
    assert (run.folder / "log.txt").read_text("utf-8") == "2026-01-01T00:00:00.000+00:00 load\n"


def test_after_a_crash_cut_a_line_off_the_next_event_has_a_line_of_its_own(run: Run) -> None:
    events = run.folder / "events.jsonl"
    run.append(Phase("load"))
    with open(events, "a") as file:
        file.write('{"schema": 1, "ev')
    with run.locked():
        run.append(Phase("train"))
    lines = events.read_text().splitlines()
    assert len(lines) == 3
    assert json.loads(lines[2])["name"] == "train"


def test_the_lock_is_free_again_after_use(run: Run) -> None:
    with run.locked():
        assert (run.folder / "lock").is_file()
    with run.locked():
        pass
    assert not (run.folder / "lock").exists()


def test_a_run_that_another_process_writes_is_refused(run: Run, writer: subprocess.Popen[str]) -> None:
    with pytest.raises(StorageError, match=f"process {writer.pid}"), run.locked():
        pass
    assert json.loads((run.folder / "lock").read_text())["pid"] == writer.pid


@pytest.mark.parametrize("reaped", [True, False])
def test_the_lock_of_a_killed_process_is_taken_over(run: Run, writer: subprocess.Popen[str], reaped: bool) -> None:
    writer.send_signal(signal.SIGKILL)
    if reaped:
        writer.wait()
    else:
        os.waitid(os.P_PID, writer.pid, os.WEXITED | os.WNOWAIT)
    with run.locked():
        assert json.loads((run.folder / "lock").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("change", [{"boot": "an earlier boot"}, {"started": 1.0}])
def test_a_lock_from_before_a_reboot_or_of_a_reused_process_number_is_taken_over(
    run: Run, change: dict[str, object]
) -> None:
    lock = run.folder / "lock"
    with run.locked():
        held = json.loads(lock.read_text())
    lock.write_text(json.dumps({**held, **change}))
    with run.locked():
        assert json.loads(lock.read_text()) == held


def test_a_lock_that_a_crash_cut_off_is_taken_over(run: Run) -> None:
    (run.folder / "lock").write_text('{"pid": 12')
    with run.locked():
        pass


def test_a_lock_held_on_another_machine_is_respected(run: Run) -> None:
    lock = run.folder / "lock"
    with run.locked():
        held = json.loads(lock.read_text())
    lock.write_text(json.dumps({**held, "pid": 0, "host": "elsewhere"}))
    with pytest.raises(StorageError, match="another machine, elsewhere"), run.locked():
        pass


def test_paths_inside_a_run_are_those_of_the_contract(run: Run) -> None:
    assert run.checkpoint_folder(500) == run.folder / "checkpoints" / "step-000500"
    assert run.preview_path(500, 0, 42) == run.folder / "previews" / "step-000500" / "00-seed42.png"
    assert run.result_path("cat") == run.folder / "cat.safetensors"


def test_only_whole_checkpoints_are_listed_newest_last(run: Run) -> None:
    for step in (1_000_000, 250, 999_750):
        checkpoint(run, step)
    torn = run.checkpoint_folder(1_000_250)
    torn.mkdir()
    (torn / "cat.safetensors").write_bytes(b"half")
    shutil.copytree(run.checkpoint_folder(250), run.folder / "checkpoints" / "step-000250 copy")
    assert [path.name for path in run.checkpoints()] == ["step-000250", "step-999750", "step-1000000"]


def test_an_untouched_checkpoint_verifies(run: Run) -> None:
    verify_manifest(checkpoint(run, 250))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"wei", "3 bytes instead of 7"), (b"weighty", "content changed"), (None, "missing")],
)
def test_a_torn_file_of_a_checkpoint_is_named(run: Run, content: bytes | None, message: str) -> None:
    file = checkpoint(run, 250) / "cat.safetensors"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(StorageError, match=message) as error:
        verify_manifest(file.parent)
    assert error.value.where == str(file)


@pytest.mark.parametrize("content", [None, b'{"files": {"a', b"[]"])
def test_a_checkpoint_without_a_readable_manifest_does_not_verify(run: Run, content: bytes | None) -> None:
    manifest = checkpoint(run, 250) / manifests.MANIFEST
    manifest.unlink() if content is None else manifest.write_bytes(content)
    with pytest.raises(StorageError, match="manifest"):
        verify_manifest(manifest.parent)


def test_the_latest_run_is_the_one_written_last(run: Run) -> None:
    other = Run.create(run.folder.parent / "dog", "", {}, {})
    os.utime(other.folder / "run.json", (0, 0))
    assert latest_run(run.folder.parent) == run.folder


def test_without_any_run_there_is_no_latest_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run folders"):
        latest_run(tmp_path)


def test_a_record_that_cannot_be_written_is_a_warning_once_and_made_up_for_later(run: Run) -> None:
    log = run.folder / "log.txt"
    log.mkdir()
    warning = run.append(Phase("load"))
    assert warning is not None
    assert "the run goes on without its record" in warning.message
    assert warning.where == str(log)
    assert run.append(Phase("train")) is None
    log.rmdir()
    run.append(Phase("finish"))
    assert [line.split()[1] for line in log.read_text().splitlines()] == ["load", "train", "finish"]
    assert len((run.folder / "events.jsonl").read_text().splitlines()) == 3


def test_nothing_is_written_where_a_run_folder_was(run: Run) -> None:
    shutil.rmtree(run.folder)
    for write in (lambda: run.update(step=1), lambda: run.append(Phase("load")), run.require_there):
        with pytest.raises(StorageError, match="the run folder is gone"):
            write()
    assert not run.folder.exists()


@pytest.mark.parametrize(
    "name", ["checkpoints", "previews", "events.jsonl", "run.json", "checkpoints/step-000250/state"]
)
def test_a_run_folder_with_a_link_that_leads_out_of_it_is_not_written(run: Run, tmp_path: Path, name: str) -> None:
    checkpoint(run, 250)
    (tmp_path / "precious").mkdir()
    place = run.folder / name
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError, match="leads out of it") as error, run.locked():
        pass
    assert error.value.where == str(place)
    assert not list((tmp_path / "precious").iterdir())


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders")
@pytest.mark.parametrize("name", ["lock", "log.txt", "captions.jsonl", "checkpoints/step-000250/state/x.safetensors"])
def test_a_run_folder_with_a_pipe_in_it_is_refused_instead_of_waited_for(run: Run, name: str) -> None:
    checkpoint(run, 250)
    os.mkfifo(run.folder / name)
    with pytest.raises(StorageError, match="this is a pipe, a device or a socket") as error, run.locked():
        pass
    assert error.value.where == str(run.folder / name)


def test_a_run_folder_that_is_reached_through_a_link_or_has_one_within_is_written(run: Run, tmp_path: Path) -> None:
    (run.folder / "newest").symlink_to(run.folder / "run.json")
    (tmp_path / "link").symlink_to(run.folder)
    with Run.open(tmp_path / "link").locked():
        assert (run.folder / "lock").is_file()


def test_what_killed_processes_left_is_cleared_away_and_nothing_else(run: Run) -> None:
    kept = checkpoint(run, 250)
    (run.folder / "checkpoints" / ".step-000500.partial").mkdir()
    (run.folder / "checkpoints" / ".step-000100.dropped").mkdir()
    (run.folder / ".0badcafe.12.partial").write_text("half")
    (run.folder / ".mine").write_text("")
    with run.locked():
        assert list((run.folder / "checkpoints").iterdir()) == [kept]
        assert not (run.folder / ".0badcafe.12.partial").exists()
    assert (run.folder / ".mine").exists()


def test_a_run_without_run_json_is_known_again_by_its_settings(run: Run) -> None:
    (run.folder / "run.json").unlink()
    again = Run.open(run.folder)
    assert again.trouble is not None
    assert "run.json is missing" in again.trouble.message


def test_a_half_made_run_is_no_latest_one(run: Run) -> None:
    shutil.copytree(run.folder, run.folder.with_name(".cat.abcdefgh.partial"))
    assert latest_run(run.folder.parent) == run.folder


def test_a_folder_of_checkpoints_that_cannot_be_read_is_not_an_empty_one(run: Run) -> None:
    (run.folder / "checkpoints").write_text("")
    with pytest.raises(StorageError):
        run.checkpoints()
