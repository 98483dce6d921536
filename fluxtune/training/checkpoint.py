"""Checkpoints: the whole state of a run in safetensors and JSON, complete or absent.

    step-000500/
      NAME.safetensors           the LoRA as it is, usable anywhere
      state/adapter.safetensors  raw float32 A and B
      state/average.safetensors  the moving average, if one is kept
      state/optimizer.safetensors
      state.json                 step, counters, scalars of the optimizer
      manifest.json              sizes and hashes, written last

Nothing random is stored: every draw is a pure function of the seed and the step.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from fluxtune import files
from fluxtune.errors import DivergedError, StorageError
from fluxtune.events import Sink, Warning
from fluxtune.lora.adapter import LoraLayer, adapter_layers
from fluxtune.lora.files import write_lora
from fluxtune.lora.metadata import LoraFacts
from fluxtune.runs import Run, verify_manifest, write_manifest
from fluxtune.training.ema import MovingAverage

Counters = dict[str, float | int]

_STATE_SCHEMA = 1


@dataclass(frozen=True)
class Snapshot:
    """The whole state after ``step`` steps, in memory of its own, so that training can go on while it is written.

    Attributes:
        layers: the adapter as a LoRA file has it: the moving average, where one is kept.
        tensors: for each file below ``state/``, its tensors.
        record: what ``state.json`` holds.
        dtype: precision of the LoRA file.
    """

    step: int
    layers: dict[str, LoraLayer]
    tensors: dict[str, dict[str, torch.Tensor]]
    record: dict[str, Any]
    dtype: torch.dtype
    facts: LoraFacts


def take_snapshot(
    step: int,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: MovingAverage,
    counters: Counters,
    scale: float,
    dtype: torch.dtype,
    facts: LoraFacts,
) -> Snapshot:
    """Copy the state to the processor's memory.

    Args:
        counters: what the loop counts, for ``load_checkpoint`` to give back.
        scale: of the adapter, see ``lora/adapter.py``.

    Raises:
        DivergedError: some of it is not finite, and could never be trained from.
    """
    moments, scalars = _flatten(optimizer)
    parts = {"adapter": dict(parameters), "average": average.average, "optimizer": moments}
    tensors = {part: _copied(held) for part, held in parts.items() if held or part != "average"}
    for part, copies in tensors.items():
        if broken := [name for name, tensor in copies.items() if not tensor.isfinite().all()]:
            raise DivergedError(
                f"after step {step} the {part} is not finite ({broken[0]}), so it is not saved: the checkpoint before "
                "stands",
                hint="resume from it with a lower --learning-rate",
            )
    record = {
        "schema": _STATE_SCHEMA,
        "step": step,
        "average_updates": average.updates,
        "optimizer_class": type(optimizer).__name__,
        "optimizer": scalars,
        "counters": dict(counters),
    }
    layers = adapter_layers(tensors.get("average", tensors["adapter"]), scale)
    return Snapshot(step, layers, tensors, record, dtype, facts)


def write_checkpoint(folder: Path, snapshot: Snapshot) -> None:
    """Write a snapshot under a temporary name, read it back, and rename it to ``folder``; touches nothing else.

    A checkpoint that is there already, and whole, stands: it is of the same step.

    Raises:
        StorageError: it cannot be written; nothing is left of it.
        VerificationError: what was written is not what was trained.
    """
    if _is_whole(folder):
        return
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_lora(partial / f"{snapshot.facts.name}.safetensors", snapshot.layers, snapshot.dtype, snapshot.facts)
    for part, tensors in snapshot.tensors.items():
        files.write_bytes(partial / "state" / f"{part}.safetensors", save(tensors))
    files.write_json(partial / "state.json", snapshot.record)
    write_manifest(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    files.sync_folder(folder.parent)


def last_good_checkpoint(run: Run, on_event: Sink) -> Path | None:
    """The newest checkpoint whose every file is as it was written.

    Damaged ones are named and renamed ``damaged-step-...``, so that nothing takes them for whole again.
    """
    for folder in reversed(run.checkpoints()):
        try:
            verify_manifest(folder)
        except StorageError as error:
            on_event(Warning(f"checkpoint skipped: {error.message}", error.where, "the one before it is used"))
            aside = folder.with_name(f"damaged-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(folder, aside)
            continue
        return folder
    return None


def steps_done(folder: Path) -> int:
    """The steps after which a checkpoint was saved."""
    return int(_read_state(folder)["step"])


def load_checkpoint(
    folder: Path,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: MovingAverage,
) -> tuple[int, Counters]:
    """Restore the state; returns the step it was saved after, and what the loop had counted.

    Raises:
        StorageError: the checkpoint was made with another adapter or optimizer.
    """
    state = _read_state(folder)
    seen, wanted = (state["schema"], state["optimizer_class"]), (_STATE_SCHEMA, type(optimizer).__name__)
    if seen != wanted:
        raise StorageError(
            f"this checkpoint holds the state of {seen[1]} (schema {seen[0]}), and the run wants {wanted[1]} "
            f"(schema {wanted[0]})",
            where=str(folder),
            hint="resume with the optimizer and the fluxtune version that the run was started with",
        )
    _restore(folder / "state" / "adapter.safetensors", dict(parameters))
    if average.average:
        _restore(folder / "state" / "average.safetensors", average.average)
    average.updates = state["average_updates"]
    stored = load_file(folder / "state" / "optimizer.safetensors")
    optimizer.load_state_dict(
        {"state": _unflatten(stored, state["optimizer"]), "param_groups": optimizer.state_dict()["param_groups"]}
    )
    return int(state["step"]), dict(state["counters"])


def _read_state(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "state.json").read_text(encoding="utf-8")))


def _is_whole(folder: Path) -> bool:
    try:
        verify_manifest(folder)
    except StorageError:
        return False
    return True


def _copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


@torch.no_grad()
def _restore(path: Path, into: dict[str, torch.Tensor]) -> None:
    """Copy stored tensors into ``into``, which must match exactly."""
    stored = load_file(path) if path.is_file() else {}
    odd = sorted(set(stored) ^ set(into)) + [
        name for name in set(stored) & set(into) if stored[name].shape != into[name].shape
    ]
    if odd:
        raise StorageError(
            f"this checkpoint belongs to another adapter: {odd[0]} is missing or of another shape",
            where=str(path),
            hint="resume with the settings that the run was started with",
        )
    for name, tensor in into.items():
        tensor.copy_(stored[name])


def _flatten(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors and JSON scalars, both under ``NUMBER-OF-PARAMETER.FIELD``.

    Read from ``state``, since ``state_dict`` of the 8-bit optimizers nests it in a form of their own.
    """
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in enumerate(parameters):
        for name, value in optimizer.state[parameter].items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                scalars[f"{index}.{name}"] = value
    return tensors, scalars


def _unflatten(tensors: dict[str, torch.Tensor], scalars: dict[str, Any]) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **scalars}.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    return state
