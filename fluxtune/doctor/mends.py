"""Commands that mend an installation, ready to paste into this machine's shell."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from importlib import metadata

from fluxtune.environment.torch_builds import TorchBuild

NEWEST_DRIVER = "https://www.nvidia.com/drivers"


def pip(*arguments: str) -> str:
    """``python -m pip`` of this environment, or uv's where the environment has no pip."""
    words = " ".join(_quoted(argument) for argument in arguments)
    active = os.environ.get("VIRTUAL_ENV") == sys.prefix
    if importlib.util.find_spec("pip") is None:
        return f"uv pip {words}" if active else f"uv pip {words} --python {_quoted(sys.executable)}"
    return f"{'python' if active else _program(sys.executable)} -m pip {words}"


def install_torch(build: TorchBuild, again: bool = False) -> str:
    """Puts that build of torch in the place of the one that is there; ``again`` even where it is the same."""
    return pip("install", *["--force-reinstall"] * again, build.requirement, "--index-url", build.index)


def install_again(name: str) -> str:
    """Puts the files of a library anew, in the version that is there."""
    try:
        wanted = f"{name}=={metadata.version(name)}"
    except metadata.PackageNotFoundError:
        wanted = name
    return pip("install", "--force-reinstall", "--no-deps", wanted)


def install_driver(series: int | None = None) -> str:
    """How a driver of that series, or the newest, gets onto this kind of machine."""
    wanted = f" {series} or newer" if series else ""
    if in_wsl():
        return f"install the NVIDIA driver{wanted} in Windows ({NEWEST_DRIVER}), not in WSL; then: wsl --shutdown"
    if platform.system() == "Linux" and "ubuntu" in _distribution():
        return "sudo ubuntu-drivers install && sudo reboot"
    return f"install the NVIDIA driver{wanted} ({NEWEST_DRIVER}) and restart the machine"


def in_wsl() -> bool:
    """Whether this is Linux inside Windows."""
    return "microsoft" in platform.uname().release.lower()


def _distribution() -> str:
    try:
        known = platform.freedesktop_os_release()
    except OSError:
        return ""
    return f"{known.get('ID', '')} {known.get('ID_LIKE', '')}"


def _program(path: str) -> str:
    # PowerShell runs a quoted name only when told so.
    return f"& {_quoted(path)}" if os.name == "nt" and " " in path else _quoted(path)


def _quoted(argument: str) -> str:
    """In double quotes where it needs any: sh, PowerShell and cmd all take those."""
    return f'"{argument}"' if any(sign in argument for sign in " <>;,!*") else argument
