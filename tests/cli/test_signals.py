from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from fluxtune.cli.signals import stop_requests
from fluxtune.errors import ExitCode

WAITING = """
import sys, time
from fluxtune.cli.signals import stop_requests
with stop_requests() as should_stop:
    print("ready", flush=True)
    while should_stop() is None:
        time.sleep(0.01)
    print(int(should_stop()), flush=True)
    if "stay" in sys.argv:
        time.sleep(60)
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")


def start(*arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, *arguments],
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
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, f"{code}\n")
    assert err == f"\nstopping after this step, then saving; {again} to leave at once without saving\n"


def test_a_second_signal_leaves_at_once() -> None:
    process = start("stay")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "130\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT


def test_before_and_afterwards_signals_are_what_they_were() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_requests() as should_stop:
        assert should_stop() is None
        signal.raise_signal(signal.SIGTERM)
        assert should_stop() == ExitCode.TERMINATED
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
