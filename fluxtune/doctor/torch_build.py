"""Whether torch works, and is built for the card and its driver."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from typing import Any

from fluxtune.doctor.asking import Broken
from fluxtune.doctor.mends import install_driver, install_torch
from fluxtune.environment.card import OLDEST_DRIVERS, Graphics
from fluxtune.environment.torch_builds import CPU, build_for, has_kernels, takes
from fluxtune.events import Finding

_RUNTIME = "winget install Microsoft.VCRedist.2015+.x64"


def check_torch(torch: dict[str, Any] | Broken, graphics: Graphics) -> Iterator[Finding]:
    """One finding: the first thing that is wrong on the way from the import to a product on the card."""
    if isinstance(torch, Broken):
        yield _broken(torch, graphics)
        return
    version, card = torch["version"], graphics.foremost
    if torch["available"]:
        yield _on_the_card(torch, graphics)
    elif card is None:
        yield Finding("ok", "torch", f"{version}, {_built_for(torch)}; it works on the processor")
    elif torch["cuda"] is None:
        built = _built_for(torch)
        yield Finding(
            "error", "torch", f"{version} is {built}, and cannot use {card.name}", hint=_right_torch(graphics)
        )
    elif not takes(graphics.cuda, _numbers(torch["cuda"])):
        yield Finding(
            "error",
            "torch",
            f"{version} is {_built_for(torch)}, which the driver {graphics.driver} is too old for",
            hint=f"{_right_torch(graphics)}; or a newer driver: {install_driver()}",
        )
    elif "CUDA_VISIBLE_DEVICES" in os.environ:
        hidden = os.environ["CUDA_VISIBLE_DEVICES"]
        unset = "Remove-Item Env:CUDA_VISIBLE_DEVICES" if os.name == "nt" else "unset CUDA_VISIBLE_DEVICES"
        yield Finding("error", "torch", f"CUDA_VISIBLE_DEVICES={hidden!r} hides the card from torch", hint=unset)
    else:
        words = "; ".join(filter(None, [*torch["warnings"], torch["failed"]]))
        yield Finding("error", "torch", f"{version} finds no usable card: {words}", hint=install_driver())


def _on_the_card(torch: dict[str, Any], graphics: Graphics) -> Finding:
    card, version = torch["cards"][0], torch["version"]
    capability = tuple(card["capability"])
    kernels, forward = _kernels_of(torch["kernels"])
    if torch["hip"]:
        note = f"{version}, {_built_for(torch)}, on {card['name']}: fluxtune's memory figures are for NVIDIA cards"
        return Finding("note", "torch", note)
    if not has_kernels(kernels, capability) and not any(each <= capability for each in forward):
        held = ", ".join(torch["kernels"])
        return Finding(
            "error",
            "torch",
            f"{version} has no kernels for {card['name']} (compute capability {capability[0]}.{capability[1]}): {held}",
            hint=_right_torch(graphics, capability),
        )
    if torch["failed"]:
        seen = f"{version} sees {card['name']}, but cannot multiply on it: {torch['failed']}"
        return Finding("error", "torch", seen, hint=_right_torch(graphics, capability))
    return Finding("ok", "torch", f"{version}, {_built_for(torch)}; it computes on {card['name']}")


def _broken(torch: Broken, graphics: Graphics) -> Finding:
    missing = torch.words.startswith("ModuleNotFoundError: No module named 'torch'")
    mend = _right_torch(graphics, again=not missing) if graphics.foremost else install_torch(CPU, again=not missing)
    if missing:
        return Finding("error", "torch", "torch is not installed", hint=mend)
    if platform.system() == "Windows" and ("DLL" in torch.words or "WinError 126" in torch.words):
        mend = f"{_RUNTIME} (the runtime that torch needs); if that does not help: {mend}"
    return Finding("error", "torch", f"torch cannot be imported: {torch.words}", hint=mend)


def _right_torch(graphics: Graphics, capability: tuple[int, ...] | None = None, again: bool = False) -> str:
    """The command that installs the build for this card and driver, or the way to a driver that takes one."""
    wanted = capability or (graphics.foremost.capability if graphics.foremost else None)
    card = (wanted[0], wanted[1]) if wanted else None
    if build := build_for(graphics.cuda, card):
        return install_torch(build, again)
    if newer := build_for(None, card):
        series = OLDEST_DRIVERS[newer.cuda[0]] if newer.cuda else None
        return f"{install_driver(series)}; then: {install_torch(newer, again)}"
    return "no torch that fluxtune takes is built for this card: use one of the GTX 10 series or newer"


def _built_for(torch: dict[str, Any]) -> str:
    if torch["hip"]:
        return f"built for ROCm {torch['hip']}"
    return f"built for CUDA {torch['cuda']}" if torch["cuda"] else "built without CUDA"


def _kernels_of(names: list[str]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(Machine code, code that newer cards can compile) from ``sm_86`` and ``compute_120``."""
    kernels: list[tuple[int, int]] = []
    forward: list[tuple[int, int]] = []
    for name in names:
        kind, _, digits = name.partition("_")
        number = "".join(sign for sign in digits if sign.isdigit())
        if number:
            (kernels if kind == "sm" else forward).append((int(number[:-1]), int(number[-1])))
    return kernels, forward


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
