"""Whether the base model is here or can be had."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fluxtune.doctor.asking import Broken
from fluxtune.doctor.mends import pip
from fluxtune.errors import some_names
from fluxtune.events import Finding


def check_hub(answer: dict[str, Any] | Broken, base: str) -> Iterator[Finding]:
    """One finding. What cannot be downloaded is a warning: folders and the embedded model need no hub."""
    if isinstance(answer, Broken):
        mend = pip("install", "--force-reinstall", "--no-deps", "huggingface-hub")
        yield Finding("error", "hub", f"the hub cannot be asked: {answer.words}", hint=mend)
    elif not answer["missing"]:
        yield Finding("ok", "hub", f"{base} is here, whole", where=answer["folder"])
    elif answer["local"]:
        told = f"{base} is incomplete; missing: {some_names(answer['missing'])}"
        yield Finding("error", "hub", told, where=answer["folder"], hint="complete the folder, or give a hub id")
    elif answer["offline"]:
        told = f"the network is switched off (HF_HUB_OFFLINE), and {base} is not whole in the hub cache"
        yield Finding("warning", "hub", told, where=answer["cache"], hint=f"unset HF_HUB_OFFLINE; hf download {base}")
    elif answer["refusal"] is not None:
        yield Finding("warning", "hub", answer["refusal"]["message"], hint=answer["refusal"]["hint"])
    else:
        how = "with your token" if answer["token"] else "without a token"
        yield Finding("ok", "hub", f"{base} can be downloaded from {answer['endpoint']} {how}")


def has_to_be_downloaded(answer: dict[str, Any] | Broken) -> bool:
    """Whether disk is needed for the base model."""
    return not isinstance(answer, Broken) and bool(answer["missing"]) and not answer["local"]
