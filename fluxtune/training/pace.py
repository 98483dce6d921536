"""How long a step took on this machine before: kept, so that the next run of the kind can say when it would end."""

from __future__ import annotations

import json
import os
import platform
from contextlib import suppress
from pathlib import Path

from fluxtune.dataset.cache import cache_folder, key_of
from fluxtune.errors import StorageError
from fluxtune.files import write_json
from fluxtune.training.simulation import Work


def pace_of(work: Work, device: str, processes: int = 1) -> float | None:
    """Seconds of an optimizer step of such work on this machine, or None where none was timed."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        return float(json.loads(_file(work, device, processes).read_text(encoding="utf-8"))["seconds"])
    return None


def keep_pace(work: Work, device: str, seconds: float, processes: int = 1) -> None:
    """Remembers the seconds of an optimizer step."""
    # A cache that cannot be written is worth no word.
    with suppress(StorageError):
        write_json(_file(work, device, processes), {"seconds": round(seconds, 4), "device": _name(device)})


def _file(work: Work, device: str, processes: int) -> Path:
    config = work.config
    settings = (
        config.memory.model_dump_json(exclude={"budget", "text_precision", "cache_quantized", "vae_tiling"}),
        config.lora.model_dump_json(exclude={"init_from"}),
        config.training.model_dump_json(include={"batch_size", "accumulation", "optimizer", "precision"}),
        config.training.preservation.model_dump_json(include={"method", "every"}),
    )
    model = json.dumps(work.transformer, sort_keys=True, default=str)
    shared = () if processes == 1 else (processes,)
    key = key_of("pace", _name(device), model, *work.size, *settings, *shared)
    return cache_folder() / "paces" / f"{key}.json"


def _name(device: str) -> str:
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    threads = os.environ.get("OMP_NUM_THREADS", os.cpu_count())
    return f"{platform.processor() or platform.machine()}, {threads} threads"
