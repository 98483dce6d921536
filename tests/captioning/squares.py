"""Captioning a folder of squares by a stand-in for a model: settings, what the files say, and ways to be cut off."""

from __future__ import annotations

from pathlib import Path

from fluxtune.captioning.journal import FOLDER
from fluxtune.captioning.writing import Decide, Proposal
from fluxtune.config.schema import Config

NAMES = ("a", "b", "c", "d")


def settings(folder: Path, **captioning: object) -> Config:
    return settings_of_rows({"path": str(folder)}, **captioning)


def settings_of_rows(*rows: dict[str, str], **captioning: object) -> Config:
    return Config.model_validate(
        {"dataset": {"folders": list(rows)}, "captioning": {"captioner": "nano", "batch_size": 1, **captioning}}
    )


def texts(folder: Path) -> dict[str, str]:
    names = (file.relative_to(folder) for file in sorted(folder.rglob("*.txt")))
    return {name.as_posix(): (folder / name).read_text() for name in names if name.parts[0] != FOLDER}


def cut_off_after(number: int) -> Decide:
    seen = []

    def decide(proposal: Proposal) -> str:
        seen.append(proposal)
        if len(seen) > number:
            raise KeyboardInterrupt
        return proposal.caption

    return decide
