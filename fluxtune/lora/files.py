"""LoRA files in the form that every reader takes: PEFT keys, the scale folded into B, no alpha anywhere.

``transformer.PATH.lora_A.weight [rank, in]`` and ``transformer.PATH.lora_B.weight [out, rank]``. A reader that knows
no alpha applies ``B @ A``; one that looks for alpha finds none and does the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from fluxtune.errors import BaseModelError, StorageError, UsageError, VerificationError
from fluxtune.files import sha256_of, write_with
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.metadata import LoraFacts, lora_metadata

_PREFIX = "transformer."


def folded_tensors(layers: dict[str, LoraLayer], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a file: the scale goes into B in float32, before the cast to ``dtype``."""
    tensors = {}
    for path, layer in layers.items():
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = layer.a.to("cpu", dtype).contiguous()
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = (layer.b.float() * layer.scale).to("cpu", dtype).contiguous()
    return tensors


def write_lora(path: Path, layers: dict[str, LoraLayer], dtype: torch.dtype, facts: LoraFacts) -> str:
    """Write a LoRA atomically, read it back, and compare it with what was trained.

    Returns:
        Hex SHA-256 of the file.

    Raises:
        VerificationError: a weight is not finite, or the file does not hold what was trained.
        StorageError: the file cannot be written.
    """
    tensors = folded_tensors(layers, dtype)
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise VerificationError(
            f"{len(broken)} tensors are not finite, the first is {broken[0]}",
            where=str(path),
            hint="the training diverged: take an earlier checkpoint and a lower learning rate",
        )
    metadata = lora_metadata(facts, tensors)
    write_with(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))
    verify_lora(path, layers)
    return sha256_of(path)


def verify_lora(path: Path, layers: dict[str, LoraLayer]) -> None:
    """Reopen ``path`` and check that every layer's change is the trained one, up to the file's precision.

    Raises:
        VerificationError: keys are missing or extra, or a layer's change differs.
    """
    stored = read_peft_layers(path)
    if set(stored) != set(layers):
        odd = sorted(set(stored) ^ set(layers))
        raise VerificationError(f"{len(odd)} layers are missing or extra, the first is {odd[0]}", where=str(path))
    for name, layer in layers.items():
        a, b = layer.a.float().cpu(), layer.b.float().cpu() * layer.scale
        step = torch.finfo(stored[name].a.dtype).eps
        for kept, trained in ((stored[name].a.float(), a), (stored[name].b.float(), b)):
            error = (kept - trained).abs().max()
            if error > step * trained.abs().max():
                raise VerificationError(f"{name} differs from what was trained by {error:.2e}", where=str(path))


def read_peft_layers(path: Path) -> dict[str, LoraLayer]:
    """The layers of a file as ``write_lora`` makes them, in the file's precision."""
    tensors = load_file(path)
    layers = {}
    for key in tensors:
        if key.startswith(_PREFIX) and key.endswith(".lora_A.weight"):
            name = key.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
            layers[name] = LoraLayer(tensors[key], tensors[f"{_PREFIX}{name}.lora_B.weight"], 1.0)
    return layers


def read_lora(path: Path) -> dict[str, LoraLayer]:
    """The layers of a LoRA for FLUX.1 in any format that diffusers reads, scales resolved.

    Raises:
        UsageError: there is no such file, or it is not safetensors.
        StorageError: the file is damaged.
        BaseModelError: it holds no LoRA for a FLUX.1 transformer.
    """
    from diffusers import FluxPipeline

    read_metadata(path)
    tensors, alphas, adapter = FluxPipeline.lora_state_dict(
        str(path), return_alphas=True, return_lora_metadata=True, use_safetensors=True
    )
    layers = {}
    for key, a in tensors.items():
        if key.startswith(_PREFIX) and key.endswith(".lora_A.weight"):
            name = key.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
            scale = _scale(name, a.shape[0], alphas or {}, adapter or {})
            layers[name] = LoraLayer(a, tensors[f"{_PREFIX}{name}.lora_B.weight"], scale)
    if not layers:
        raise BaseModelError(
            "this file holds no LoRA for a FLUX.1 transformer", where=str(path), hint="choose a FLUX.1 LoRA"
        )
    return layers


def read_metadata(path: Path) -> dict[str, str]:
    """The header metadata of a LoRA file.

    Raises:
        UsageError: there is no such file, or it is a pickle.
        StorageError: the file is damaged.
    """
    if not path.is_file():
        raise UsageError("there is no such LoRA file", where=str(path), hint="check the path")
    if path.suffix.lower() != ".safetensors":
        raise UsageError(
            f"only .safetensors LoRA files are read, not {path.suffix or 'files without a suffix'}: other formats can "
            "run code when they are opened",
            where=str(path),
            hint="convert the file to safetensors first",
        )
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise StorageError(f"the file is damaged ({error})", where=str(path), hint="download it again") from error


def _scale(name: str, rank: int, alphas: dict[str, Any], adapter: dict[str, Any]) -> float:
    """``.alpha`` tensors count first, then the alpha that diffusers stores in the header, else alpha = rank."""
    alpha = alphas.get(f"{_PREFIX}{name}.alpha", adapter.get(f"{_PREFIX}lora_alpha", rank))
    return float(alpha) / (rank**0.5 if adapter.get(f"{_PREFIX}use_rslora") else rank)
