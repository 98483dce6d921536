"""Runs of several processes: real ones, started as a launcher does it, or by the launcher itself."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fluxtune.config.layers import to_toml
from fluxtune.config.schema import Config

ACCELERATE = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m"),
]
"""``--multi_gpu`` is how accelerate starts several processes on one machine; they need no card."""


def written(config: Config, folder: Path) -> Path:
    """The settings as a file."""
    file = folder / "settings.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    return file


def environment(cache: Path, **more: str) -> dict[str, str]:
    """One thread each: sums are split among threads, and rounded differently."""
    told = {"FLUXTUNE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **told, **more}


def by_accelerate(number: int, arguments: list[str], cache: Path) -> subprocess.CompletedProcess[str]:
    """``accelerate launch --num_processes NUMBER -m fluxtune ARGUMENTS``."""
    command = [*ACCELERATE[:-1], "--num_processes", str(number), "-m", "fluxtune", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(cache), timeout=300)


@contextmanager
def started(
    number: int, arguments: list[str], cache: Path, of_each: Mapping[int, dict[str, str]] | None = None
) -> Iterator[list[subprocess.Popen[str]]]:
    """``fluxtune ARGUMENTS`` in so many processes, the main one first, without anybody who watches over them.

    Args:
        of_each: more of the environment of a process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    told = {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "fluxtune", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(cache, **told, RANK=str(index), LOCAL_RANK=str(index)) | (of_each or {}).get(index, {}),
        )
        for index in range(number)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def ended(process: subprocess.Popen[str], seconds: float = 300) -> tuple[int, str, str]:
    """The exit code of a process, and the rest of its streams."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def until_step(process: subprocess.Popen[str], step: int) -> list[dict[str, Any]]:
    """The records of a process that writes JSON lines, up to that of a step."""
    assert process.stdout is not None
    records = []
    for line in process.stdout:
        records.append(json.loads(line))
        if records[-1]["event"] == "step" and records[-1]["step"] == step:
            break
    return records
