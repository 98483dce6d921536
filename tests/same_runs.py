"""What equal runs leave equal: weights, states, previews and events, all but times, rates and memory."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from fluxtune.errors import StorageError
from fluxtune.files import json_lines, sha256_of
from fluxtune.manifests import verify_manifest
from fluxtune.runs import Run

PROGRESS = {"step": ("step", "total", "loss", "learning_rate", "grad_norm", "epoch"), "preview": ("prompt", "seed")}
"""Events -> what is equal in them."""


def left_behind(run: Path) -> dict[str, Any]:
    """Everything that an equal run leaves, too. The last record of a step counts."""
    events = list(json_lines(run / "events.jsonl"))
    progress = {
        f"{row['event']} {row['step']} {row.get('prompt', '')} {row.get('seed', '')}": [
            row[name] for name in PROGRESS[row["event"]]
        ]
        for row in events
        if row["event"] in PROGRESS
    }
    result = run / f"{run.name}.safetensors"
    return {
        "progress": dict(sorted(progress.items())),
        "checkpoints": sorted({row["step"] for row in events if row["event"] == "checkpoint"}),
        "kept": {str(step): digests for step, digests in sorted(whole_checkpoints(run).items())},
        "previews": {str(path.relative_to(run)): sha256_of(path) for path in sorted(run.rglob("*.png"))},
        "result": _tensors_of(result) if result.is_file() else None,
        "status": Run.open(run).state.status,
    }


def whole_checkpoints(run: Path) -> dict[int, dict[str, str]]:
    """The checkpoints that are as they were written: step -> file of tensors -> digest."""
    whole = {}
    for folder in Run.open(run).checkpoints():
        try:
            verify_manifest(folder)
        except StorageError:
            continue
        files = sorted(folder.rglob("*.safetensors"))
        whole[int(folder.name.removeprefix("step-"))] = {file.name: _tensors_of(file) for file in files}
    return whole


def _tensors_of(file: Path) -> str:
    """Digest of a safetensors file without its header, in which there are times."""
    content = file.read_bytes()
    return hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
