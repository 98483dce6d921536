"""Checkpoints: the whole state of a run in safetensors and JSON, complete or absent.

    step-000500/
      NAME.safetensors           the LoRA as it is, usable anywhere
      state/adapter.safetensors  raw float32 A and B
      state/average.safetensors  the moving average, if one is kept
      state/optimizer.safetensors
      state/run.json             the run's record as it was, should its own be lost
      state.json                 step, counters, scalars of the optimizer
      manifest.json              sizes and hashes, written last

Nothing random is stored: every draw is a pure function of the seed and the step.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
from fluxtune.manifests import OLDER, verify_manifest, write_manifest
from fluxtune.runs import STATE_COPY, Run
from fluxtune.tensor_files import TensorFileError, read_header
from fluxtune.training.ema import MovingAverage
from fluxtune.training.optimizers import missing_state

Counters = dict[str, float | int]

_STATE_SCHEMA = 1
_HEADER = 140
"""Bytes that describe a tensor in a safetensors file, about."""


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
    parts: dict[str, Mapping[str, torch.Tensor]] = {
        "adapter": parameters,
        "average": average.average,
        "optimizer": moments,
    }
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


def write_checkpoint(run: Run, snapshot: Snapshot) -> None:
    """Write a snapshot under a temporary name, read it back, and rename it; nothing else in the run changes.

    A checkpoint of that step that is whole stands.

    Raises:
        StorageError: it cannot be written.
        VerificationError: what was written is not what was trained.
    """
    folder = run.checkpoint_folder(snapshot.step)
    run.require_there()
    partial = folder.with_name(f".{folder.name}.partial")
    with files.storage_errors(folder):
        if folder.exists():
            if damage_of(folder) is None:
                return
            set_aside(folder)
        if partial.exists():
            shutil.rmtree(partial)
        _write_files(partial, snapshot, asdict(run.state))
        if (damage := damage_of(partial)) is not None:
            # Hashed in memory, so that this is the disk's doing.
            raise OSError(errno.EIO, f"it reads back otherwise than it was written ({damage.message})")
        os.replace(partial, folder)
        files.sync_folder(folder.parent)
        files.sync_folder(run.folder)


def _write_files(folder: Path, snapshot: Snapshot, run_state: dict[str, Any]) -> None:
    """All files of a checkpoint. Hashes are of what is in memory, so that reading back tells the mistakes of a disk."""
    # One at a time: where the run folder is gone, none is made in its place.
    folder.parent.mkdir(exist_ok=True)
    folder.mkdir()
    (folder / "state").mkdir()
    name = f"{snapshot.facts.name}.safetensors"
    digests = {name: write_lora(folder / name, snapshot.layers, snapshot.dtype, snapshot.facts)}
    for part, tensors in snapshot.tensors.items():
        digests[f"state/{part}.safetensors"] = _write(folder / "state" / f"{part}.safetensors", save(tensors))
    digests[STATE_COPY] = _write(folder / STATE_COPY, files.sealed(run_state))
    digests["state.json"] = _write(folder / "state.json", json.dumps(snapshot.record, indent=2).encode("utf-8"))
    write_manifest(folder, digests)


def _write(path: Path, content: bytes) -> str:
    files.write_bytes(path, content, make_folder=False)
    return hashlib.sha256(content).hexdigest()


def damage_of(folder: Path) -> StorageError | None:
    """What is wrong with a checkpoint, if anything is.

    Raises:
        StorageError: it cannot be read, which says nothing of how it is.
    """
    try:
        verify_manifest(folder)
    except StorageError as error:
        if isinstance(error.__cause__, OSError):
            raise
        return error
    return None


def set_aside(folder: Path) -> None:
    """Rename a damaged checkpoint to ``damaged-step-...``, so that nothing takes it for whole again.

    Raises:
        StorageError: it cannot be renamed.
    """
    aside = folder.with_name(f"damaged-{folder.name}")
    with files.storage_errors(folder):
        if aside.exists():
            shutil.rmtree(aside)
        os.replace(folder, aside)


def last_good_checkpoint(run: Run, on_event: Sink) -> Path | None:
    """The newest checkpoint whose every file is as it was written; damaged ones are named and set aside.

    Raises:
        StorageError: one cannot be read, or a damaged one cannot be set aside.
    """
    for folder in reversed(run.checkpoint_folders()):
        damage = damage_of(folder)
        if damage is None:
            return folder
        on_event(Warning(f"checkpoint skipped: {damage.message}", damage.where))
        set_aside(folder)
    return None


def size_of(
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: MovingAverage,
    dtype: torch.dtype,
) -> tuple[int, int]:
    """Bytes that a checkpoint takes on disk, and its LoRA alone, to within what files and folders take themselves."""
    count = sum(parameter.numel() for parameter in parameters.values())
    moments = missing_state(optimizer) + sum(tensor.nbytes for tensor in _flatten(optimizer)[0].values())
    lora = count * dtype.itemsize + _HEADER * len(parameters)
    state = sum(tensor.nbytes for tensor in (*parameters.values(), *average.average.values())) + moments
    return lora + state + 4 * _HEADER * len(parameters), lora


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
    with files.storage_errors(folder):
        _restore(folder / "state" / "adapter.safetensors", dict(parameters))
        if average.average:
            _restore(folder / "state" / "average.safetensors", average.average)
        average.updates = state["average_updates"]
        stored = _stored(folder / "state" / "optimizer.safetensors")
        optimizer.load_state_dict(
            {"state": _unflatten(stored, state["optimizer"]), "param_groups": optimizer.state_dict()["param_groups"]}
        )
    return int(state["step"]), dict(state["counters"])


def _read_state(folder: Path) -> dict[str, Any]:
    with files.storage_errors(folder / "state.json"):
        return dict(json.loads((folder / "state.json").read_text(encoding="utf-8")))


def _copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


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
