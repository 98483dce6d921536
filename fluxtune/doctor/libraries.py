"""Python, and the libraries beside torch: their versions, and whether they do what training asks of them."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement

from fluxtune.doctor.asking import Broken
from fluxtune.doctor.mends import install_again, pip
from fluxtune.environment.card import Graphics
from fluxtune.events import Finding

LEAST_FOR_BITSANDBYTES = {"nf4": (6, 0), "adamw-8bit": (6, 0), "int8": (7, 5)}
"""Compute capabilities (huggingface.co/docs/bitsandbytes, "Installation", of version 0.50.2)."""

_INSTEAD = {
    "nf4": "memory.base_precision=bf16",
    "int8": "memory.base_precision=nf4",
    "adamw-8bit": "training.optimizer=adamw",
}


def check_python() -> Iterator[Finding]:
    """Which Python this is."""
    seen = f"{platform.python_version()} ({sys.executable})"
    if sys.maxsize < 2**32:
        yield Finding("error", "python", f"{seen} is of 32 bits", hint="install a Python of 64 bits: python.org")
    else:
        yield Finding("ok", "python", seen)


def check_versions(distribution: str = "fluxtune") -> Iterator[Finding]:
    """Every requirement of the installed fluxtune against what is installed."""
    try:
        asked = [Requirement(line) for line in metadata.requires(distribution) or []]
    except metadata.PackageNotFoundError:
        yield Finding(
            "note", "versions", "fluxtune is not installed, but run from its folder", hint=pip("install", ".")
        )
        return
    wanted = [each for each in asked if each.marker is None or each.marker.evaluate({"extra": ""})]
    unmet = {requirement: seen for requirement in wanted if (seen := _unmet(requirement))}
    if not unmet:
        yield Finding(
            "ok", "versions", f"the {len(wanted)} libraries that fluxtune needs are there, in versions it takes"
        )
        return
    listed = ", ".join(f"{requirement.name}{requirement.specifier} ({seen})" for requirement, seen in unmet.items())
    mend = pip("install", *(f"{requirement.name}{requirement.specifier}" for requirement in unmet))
    yield Finding("error", "versions", f"wanted: {listed}", hint=mend)


def check_imports(answer: dict[str, Any] | Broken) -> Iterator[Finding]:
    """Whether the classes of FLUX can be imported."""
    if isinstance(answer, Broken):
        if answer.slow:
            yield _unanswered("libraries", answer)
            return
        told = f"importing transformers, diffusers, peft and accelerate failed: {answer.words}"
        yield Finding("error", "libraries", told, hint="; ".join(map(install_again, ("transformers", "diffusers"))))
        return
    broken = answer["broken_libraries"]
    if "torchvision" in broken:
        # Others stumble over it, and are whole once it is gone.
        told = f"torchvision does not fit this torch, and breaks what imports it: {broken['torchvision']}"
        yield Finding("error", "libraries", told, hint=f"{pip('uninstall', '-y', 'torchvision')} (fluxtune needs none)")
    elif broken:
        for name, words in broken.items():
            yield Finding("error", "libraries", f"{name} cannot be imported: {words}", hint=install_again(name))
    else:
        yield Finding("ok", "libraries", "transformers, diffusers, peft and accelerate have what FLUX needs")


def check_bitsandbytes(answer: dict[str, Any] | Broken, graphics: Graphics) -> Iterator[Finding]:
    """Whether it quantises, multiplies and optimises on the device that training would use."""
    if isinstance(answer, Broken):
        if answer.slow:
            yield _unanswered("bitsandbytes", answer)
            return
        told = f"it does not work: {answer.words}"
        yield Finding("error", "bitsandbytes", told, hint=install_again("bitsandbytes"))
        return
    card = graphics.foremost.capability if graphics.foremost and answer["device"] == "cuda" else None
    for name, words in answer["failed"].items():
        least = LEAST_FOR_BITSANDBYTES[name]
        told, mend = f"{name} does not work: {words}", f"{install_again('bitsandbytes')}; or without it: "
        if card and card < least:
            told = f"{name} needs a card of compute capability {least[0]}.{least[1]}, this one has {card[0]}.{card[1]}"
            mend = "train without it: "
        yield Finding("error", "bitsandbytes", told, hint=f"{mend}--set {_INSTEAD[name]}")
    if not answer["failed"]:
        device = "card" if answer["device"] == "cuda" else "processor"
        told = f"{answer['version']}: nf4 and int8 layers multiply on the {device}, 8-bit AdamW steps"
        yield Finding("ok", "bitsandbytes", told)


def check_torchao(answer: dict[str, Any] | Broken) -> Iterator[Finding]:
    """Whether it works where it is there."""
    if isinstance(answer, Broken):
        mend = pip("install", "--upgrade", "torchao")
        yield Finding("warning", "torchao", f"it is installed and does not work: {answer.words}", hint=mend)
    elif answer["version"] is None:
        yield Finding("note", "torchao", "it is not installed, and nothing needs it")
    else:
        yield Finding("ok", "torchao", f"{answer['version']}: a layer of 8-bit weights multiplies")


def _unanswered(check: str, answer: Broken) -> Finding:
    return Finding("warning", check, answer.words, hint="run `fluxtune doctor` again while the machine is less busy")


def _unmet(requirement: Requirement) -> str | None:
    """What there is instead of a requirement; none where it is met. Pre-releases count as what they precede."""
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return "missing"
    return None if requirement.specifier.contains(found, prereleases=True) else found
