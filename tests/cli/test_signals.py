from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from interruption import interrupted, interrupted_here

from fluxtune.cli.signals import stop_requests, termination_as_interruption
from fluxtune.errors import ExitCode, Stopped
from fluxtune.events import Event, Phase
from fluxtune.manifests import verify_manifest
from fluxtune.runs import Run

WAITING = """
import sys, time
from fluxtune.cli.signals import stop_requests
with stop_requests() as should_stop:
    should_stop()
    print("ready", flush=True)
    while should_stop() is None:
        time.sleep(0.01)
    print(int(should_stop()), flush=True)
    if "stay" in sys.argv:
        time.sleep(60)
"""

DOWNLOADING = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from fluxtune.cli.signals import stop_requests
from fluxtune.errors import Stopped
from fluxtune.events import Progress, ignore

def download(on_event):
    for done in range(600):
        on_event(Progress("download", done, 600))
        time.sleep(0.05)

try:
    with stop_requests() as should_stop, ThreadPoolExecutor() as pool:
        waiting = pool.submit(download, should_stop.interrupting(ignore))
        print("ready", flush=True)
        waiting.result()
except Stopped as stopped:
    sys.exit(int(stopped.exit_code))
"""

fcntl = pytest.importorskip("fcntl")
termios = pytest.importorskip("termios")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")


def start(*arguments: str, code: str = WAITING) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("number", "code", "again"),
    [(signal.SIGINT, 130, "press Ctrl-C again"), (signal.SIGTERM, 143, "send it again")],
)
def test_the_first_signal_asks_to_stop_and_says_so(number: signal.Signals, code: int, again: str) -> None:
    process = start()
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, f"{code}\n")
    assert err == f"\nstopping after this step, then saving; {again} to leave at once without saving\n"


def test_a_second_signal_leaves_at_once() -> None:
    process = start("stay")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "130\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGINT


def test_a_terminal_that_is_closed_asks_to_stop_however_often_it_says_so() -> None:
    process = start("stay")
    assert process.stdout is not None
    process.send_signal(signal.SIGHUP)
    assert process.stdout.readline() == "143\n"
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGTERM


def test_under_nohup_the_end_of_the_terminal_asks_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with termination_as_interruption(), stop_requests() as should_stop:
            signal.raise_signal(signal.SIGHUP)
            assert should_stop() is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_whose_terminal_is_closed_is_saved(tiny_flux: Path, pictures: Path, tmp_path: Path) -> None:
    arguments = train_command(tiny_flux, pictures, "training.steps=5000", "checkpoints.every=0", "previews.every=0")
    terminal, within = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "fluxtune", *arguments],
        stdin=within,
        stdout=within,
        stderr=within,
        cwd=tmp_path,
        # A session of its own, whose terminal this is.
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:
        os.close(within)
        shown = b""
        while b" 1/5000" not in shown:
            shown += os.read(terminal, 4096)
        os.close(terminal)
        assert process.wait(timeout=60) == 143
    run = Run.open(tmp_path / "run")
    assert (run.state.status, run.state.checkpoint) == ("stopped", f"checkpoints/step-{run.state.step:06d}")
    verify_manifest(run.folder / str(run.state.checkpoint))


def test_before_and_afterwards_signals_are_what_they_were() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with stop_requests() as should_stop:
        assert should_stop() is None
        signal.raise_signal(signal.SIGTERM)
        assert should_stop() == ExitCode.TERMINATED
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_before_the_work_first_asks_a_signal_interrupts_it(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="interrupted") as stop, stop_requests():
        signal.raise_signal(number)
    assert stop.value.exit_code == code
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_threads_that_download_are_interrupted_too(number: signal.Signals, code: int) -> None:
    process = start(code=DOWNLOADING)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code
    assert err.startswith("\nstopping; ")
    assert "Traceback" not in err


def test_without_a_signal_events_pass() -> None:
    seen: list[Event] = []
    with stop_requests() as should_stop:
        should_stop.interrupting(seen.append)(Phase("download"))
    assert seen == [Phase("download")]


def test_an_interruption_that_no_signal_asked_for_stays_one() -> None:
    with pytest.raises(KeyboardInterrupt), stop_requests():
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("phase", "hint"),
    [("preflight", None), ("encode pictures", "go on with: fluxtune train --resume run")],
)
def test_training_is_interrupted_before_its_first_step(
    tiny_flux: Path, pictures: Path, tmp_path: Path, phase: str, hint: str | None
) -> None:
    precisions = ["training.precision=fp32", "memory.base_precision=fp32", "memory.text_precision=fp32"]
    settings = [*precisions, "training.optimizer=adamw", "training.device=cpu", "dataset.resolution=64"]
    arguments = ["train", str(pictures), "--base", str(tiny_flux), "-o", "run", "--json"]
    arguments += [f"--set={setting}" for setting in settings]
    code, out = interrupted_here(arguments, tmp_path, lambda event: event.get("name") == phase)
    assert code == 130
    records = [json.loads(line) for line in out.splitlines()]
    assert not [record for record in records if record["event"] == "step"]
    last = records[-1]
    assert (last["event"], last["code"], last["hint"]) == ("error", 130, hint)
    run = tmp_path / "run"
    assert run.exists() == (hint is not None)
    if hint is not None:
        assert json.loads((run / "run.json").read_text())["status"] == "stopped"
        recorded = json.loads((run / "events.jsonl").read_text().splitlines()[-1])
        assert {**recorded, "time": last["time"]} == last
        assert not (run / "lock").exists()


def train_command(tiny_flux: Path, pictures: Path, *more: str) -> list[str]:
    sets = ["training.precision=fp32", "memory.base_precision=fp32", "memory.text_precision=fp32"]
    sets += ["training.optimizer=adamw", "training.device=cpu", "dataset.resolution=64", *more]
    return ["train", str(pictures), "--base", str(tiny_flux), "-o", "run", *(f"--set={each}" for each in sets)]


def test_a_signal_while_a_checkpoint_is_written_lets_it_be_whole(
    tiny_flux: Path, pictures: Path, tmp_path: Path
) -> None:
    arguments = [*train_command(tiny_flux, pictures, "checkpoints.every=2", "previews.every=0"), "--json"]
    # After its second step the run is writing the checkpoint.
    code, _, err = interrupted(arguments, tmp_path, lambda event: event.get("step") == 2, signal.SIGTERM)
    assert code == 143, err
    run = Run.open(tmp_path / "run")
    assert run.state.status == "stopped"
    assert f"step-{run.state.step:06d}" in [folder.name for folder in run.checkpoints()]
    for folder in run.checkpoints():
        verify_manifest(folder)


def test_a_signal_amid_previews_stops_there_and_saves(tiny_flux: Path, pictures: Path, tmp_path: Path) -> None:
    settings = ["checkpoints.every=0", "previews.every=2", "previews.steps=2", f"previews.seeds={list(range(200))}"]
    arguments = [*train_command(tiny_flux, pictures, *settings), "--json"]
    # Those before the first step are as many: the run is interrupted in them, and goes on with fewer.
    code, _ = interrupted_here(arguments, tmp_path, lambda event: event["event"] == "preview")
    assert code == 130
    resume = ["train", "--resume", "run", "--set=previews.seeds=[1]", "--json"]
    code, _ = interrupted_here(resume, tmp_path, lambda event: event["event"] == "step")
    assert code == 130
    done = Run.open(tmp_path / "run").state.step
    resume[3] = f"--set=previews.seeds={list(range(200))}"
    code, out = interrupted_here(resume, tmp_path, lambda event: event["event"] == "preview", signal.SIGTERM)
    assert code == 143
    run = Run.open(tmp_path / "run")
    assert run.state.status == "stopped" and run.state.step >= done
    last = json.loads(out.splitlines()[-1])
    assert (last["event"], last["code"], last["hint"]) == ("error", 143, "go on with: fluxtune train --resume run")
    assert len(list((tmp_path / "run" / "previews").rglob("*.png"))) < 10
