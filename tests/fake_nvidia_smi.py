"""An nvidia-smi that is a shell script, with the words of the real one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

OLD_BANNER = """Wed Jan 24 15:18:40 2026
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI {driver}              Driver Version: {driver}      CUDA Version: {cuda}     |
|-----------------------------------------+------------------------+----------------------+
"""
NEW_BANNER = """Sun Jun  7 08:16:57 2026
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI {driver}              KMD Version: {driver}     CUDA UMD Version: {cuda}     |
+-----------------------------------------+------------------------+----------------------+
"""
"""Of drivers from 610 on."""

MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.95"
NO_COMMUNICATION = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA "
    "driver is installed and running.\n"
)


def install(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    driver: str = "580.95.05",
    cuda: str = "13.0",
    name: str = "NVIDIA GeForce RTX 4090",
    total: str = "24564",
    free: str = "24100",
    capability: str | None = "8.9",
    processes: str = "",
    banner: str = OLD_BANNER,
) -> None:
    """Put one on the path that sees one card; without a capability, it knows no such field."""
    row = f"0, {name}, {driver}, {total}, {free}"
    asked = f"echo '{row}, {capability}'"
    if capability is None:
        asked = "echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2"
    _write(
        folder,
        monkeypatch,
        f"""case "$*" in
  *compute_cap*) {asked} ;;
  *--query-gpu*) echo '{row}' ;;
  *--query-compute-apps*) cat <<'END'
{processes}
END
  ;;
  "") cat <<'END'
{banner.format(driver=driver, cuda=cuda)}
END
  ;;
esac
""",
    )


def install_broken(folder: Path, monkeypatch: pytest.MonkeyPatch, words: str, code: int) -> None:
    """Put one on the path that fails."""
    _write(folder, monkeypatch, f"cat <<'END'\n{words}\nEND\nexit {code}\n")


def install_hanging(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put one on the path that gives no answer for a minute."""
    _write(folder, monkeypatch, "exec sleep 60\n")


def remove(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine has no nvidia-smi and no NVIDIA card, whatever it has."""
    monkeypatch.setattr("fluxtune.environment.card._PLACES", ("nvidia-smi-that-is-nowhere",))
    monkeypatch.setattr("fluxtune.doctor.graphics.has_nvidia_hardware", lambda: False)


def _write(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
