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
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fluxtune import files
from fluxtune.errors import StorageError
from fluxtune.events import Checkpoint, Sink, Warning
from fluxtune.lora.adapter import adapter_layers
from fluxtune.lora.files import write_lora
from fluxtune.lora.metadata import LoraFacts
from fluxtune.runs import OLDER, Run, verify_manifest, write_manifest
from fluxtune.tensor_files import TensorFileError, read_header
from fluxtune.training.ema import MovingAverage

_STATE_SCHEMA = 1


def save_checkpoint(
    run: Run,
    step: int,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: MovingAverage,
    scale: float,
    dtype: torch.dtype,
    facts: LoraFacts,
    keep: int,
    on_event: Sink,
) -> Path:
    """Write the state after ``step`` steps under a temporary name, then rename it, then drop the oldest.

    Raises:
        StorageError: it cannot be written; earlier checkpoints are untouched.
    """
    folder = run.checkpoint_folder(step)
    if folder in run.checkpoints():
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_lora(partial / f"{facts.name}.safetensors", adapter_layers(average.weights(), scale), dtype, facts)
    _write_tensors(partial / "state" / "adapter.safetensors", dict(parameters))
    if average.average:
        _write_tensors(partial / "state" / "average.safetensors", average.average)
    tensors, scalars = _flatten(optimizer)
    _write_tensors(partial / "state" / "optimizer.safetensors", tensors)
    state = {
        "schema": _STATE_SCHEMA,
        "step": step,
        "average_updates": average.updates,
        "optimizer_class": type(optimizer).__name__,
        "optimizer": scalars,
    }
    files.write_json(partial / "state.json", state)
    write_manifest(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    files.sync_folder(folder.parent)
    run.update(step=step, checkpoint=str(folder.relative_to(run.folder).as_posix()))
    on_event(Checkpoint(step, str(folder)))
    for old in run.checkpoints()[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


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
) -> int:
    """Restore the state; returns the step it was saved after.

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
    stored = _stored(folder / "state" / "optimizer.safetensors")
    optimizer.load_state_dict(
        {"state": _unflatten(stored, state["optimizer"]), "param_groups": optimizer.state_dict()["param_groups"]}
    )
    return int(state["step"])


def _read_state(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "state.json").read_text(encoding="utf-8")))


def _stored(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a part of a checkpoint.

    Raises:
        StorageError: the file is missing, or no whole safetensors file.
    """
    with files.storage_errors(path):
        try:
            read_header(path)
        except TensorFileError as error:
            raise StorageError(f"damaged checkpoint: {error}", where=str(path), hint=OLDER) from error
        return load_file(path)


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    on_cpu = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    files.write_with(path, lambda temporary: save_file(on_cpu, temporary))


@torch.no_grad()
def _restore(path: Path, into: dict[str, torch.Tensor]) -> None:
    """Copy stored tensors into ``into``, which must match exactly."""
    stored = _stored(path) if path.is_file() else {}
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
