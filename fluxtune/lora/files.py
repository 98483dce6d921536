"""LoRA files in the form that every reader takes: PEFT keys, the scale folded into B, no alpha anywhere.

``transformer.PATH.lora_A.weight [rank, in]`` and ``transformer.PATH.lora_B.weight [out, rank]``. A reader that knows
no alpha applies ``B @ A``; one that looks for alpha finds none and does the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import load_file, save

from fluxtune.errors import BaseModelError, StorageError, UsageError, VerificationError, some_names
from fluxtune.files import write_with
from fluxtune.flux.families import FLUX1, Family
from fluxtune.flux.weights import is_finite
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.metadata import LoraFacts, lora_metadata
from fluxtune.tensor_files import Header, PickleError, TensorFileError, read_header

Converted: TypeAlias = tuple[dict[str, torch.Tensor], dict[str, Any] | None, dict[str, Any] | None]

_PREFIX = "transformer."
_SCALES = ("lora_alpha", ".r")
"""How the settings end that diffusers stores in a header, of which the scale is made."""

_AGAIN = "write it again, on another disk if it stays so; else it is a bug: please report it"


def folded_tensors(layers: dict[str, LoraLayer], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a file: the scale goes into B in float32, before the cast to ``dtype``."""
    tensors = {}
    for path, layer in layers.items():
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = layer.a.to("cpu", dtype).contiguous()
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = (layer.b.float() * layer.scale).to("cpu", dtype).contiguous()
    return tensors


def write_lora(path: Path, layers: dict[str, LoraLayer], dtype: torch.dtype, facts: LoraFacts) -> str:
    """Write a LoRA atomically, read it back, and compare it with what was trained. Its folder must be there.

    Returns:
        Hex SHA-256 of the file.

    Raises:
        VerificationError: a weight is not finite, or the file does not hold what was trained.
        StorageError: the file cannot be written.
    """
    tensors = folded_tensors(layers, dtype)
    metadata = lora_metadata(facts, tensors)
    return write_tensors(path, tensors, metadata, lambda file: verify_lora(file, layers), make_folder=False)


def write_tensors(
    path: Path,
    tensors: dict[str, torch.Tensor],
    metadata: dict[str, str],
    check: Callable[[Path], None],
    make_folder: bool = True,
) -> str:
    """Write a LoRA's tensors atomically: the file gets its name once ``check`` found nothing wrong in it.

    Args:
        make_folder: make the folder it lies in, too.

    Returns:
        Hex SHA-256 of the file.

    Raises:
        VerificationError: a weight is not finite, or ``check`` raised it; what was there before is untouched.
        StorageError: the file cannot be written.
    """
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise VerificationError(
            f"{len(broken)} tensors are not finite, the first is {broken[0]}",
            where=str(path),
            hint="the training diverged, or its values are beyond the precision of the file: take an earlier "
            "checkpoint and a lower learning rate, or another precision",
        )
    content = _aligned(save(tensors, metadata=metadata))

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)
        try:
            check(temporary)
        except VerificationError as error:
            error.where = str(path)
            raise

    write_with(path, write, make_folder)
    return hashlib.sha256(content).hexdigest()


def _aligned(serialised: bytes) -> bytes:
    """The same file with its header padded with spaces, so that the tensors begin at a multiple of 64 bytes.

    Readers map the file into memory, and a matrix product over unaligned weights may round another way: with this,
    a loaded LoRA gives the trained one's pictures to the bit.
    """
    length = int.from_bytes(serialised[:8], "little")
    padding = -(8 + length) % 64
    header = serialised[8 : 8 + length] + b" " * padding
    return (length + padding).to_bytes(8, "little") + header + serialised[8 + length :]


def verify_lora(path: Path, layers: dict[str, LoraLayer]) -> None:
    """Reopen ``path`` and check that every layer's change is the trained one, up to the file's precision.

    Raises:
        VerificationError: keys are missing or extra, or a layer's change differs.
    """
    stored = load_file(path)
    expected = folded_tensors(layers, torch.float32)
    if odd := sorted(set(stored) ^ set(expected)):
        raise VerificationError(
            f"{len(odd)} tensors are missing or extra, the first is {odd[0]}", where=str(path), hint=_AGAIN
        )
    for name, trained in expected.items():
        kept = stored[name]
        if kept.shape != trained.shape:
            raise VerificationError(
                f"{name} is {list(kept.shape)}, should be {list(trained.shape)}", where=str(path), hint=_AGAIN
            )
        kind = torch.finfo(kept.dtype)
        error = (kept.float() - trained).abs().max()
        # Written so that a value that is no number fails too. Below ``tiny`` a format has no relative precision.
        if not error <= kind.eps * trained.abs().max() + kind.tiny:
            raise VerificationError(
                f"{name} differs from what was trained by {error:.2e}", where=str(path), hint=_AGAIN
            )


def converted(path: Path, family: Family) -> Converted:
    """A LoRA file in any format that diffusers reads for the family, under diffusers' names.

    Returns:
        The tensors, then what the file says of its scale as diffusers' loaders take it: alphas by layer, and the
        adapter's settings from the header.

    Raises:
        BaseModelError: diffusers cannot convert it, or a tensor is no matrix of numbers.
        UsageError, StorageError: see ``read_metadata``.
    """
    import diffusers

    names = header_of(path).tensors
    if not any("lora" in name.lower() for name in names):
        raise _no_lora(path, f"this file holds no LoRA; it has {some_names(sorted(names), 3) or 'no tensors'}")
    try:
        tensors, alphas, adapter = getattr(diffusers, family.pipeline).lora_state_dict(
            str(path), return_alphas=True, return_lora_metadata=True, use_safetensors=True
        )
    except (ValueError, LookupError, RuntimeError, AssertionError, TypeError, AttributeError, ArithmeticError) as error:
        raise _no_lora(
            path, f"this is no LoRA for {family.name} that diffusers reads ({type(error).__name__}: {error})"
        ) from error
    if odd := [f"{key} {list(tensor.shape)}" for key, tensor in tensors.items() if tensor.ndim != 2]:
        raise _no_lora(path, f"a LoRA is made of matrices, and these are none: {some_names(odd)}")
    if odd := [key for key, tensor in tensors.items() if not tensor.is_floating_point() or not tensor.numel()]:
        raise _no_lora(path, f"these tensors of it hold no weights: {some_names(odd)}")
    if odd := [key for key, tensor in tensors.items() if not is_finite(tensor)]:
        raise _no_lora(path, f"these tensors of it have values that are no finite numbers: {some_names(odd)}")
    if odd := [key for key, tensor in tensors.items() if _rank_of_partner(key, tensors) not in (None, tensor.shape[0])]:
        raise _no_lora(path, f"the ranks of its halves differ: {some_names(odd)}")
    if adapter is not None and not isinstance(adapter, dict):
        raise _no_lora(path, "the settings in its header are no table")
    _require_numbers(path, alphas or {})
    _require_numbers(path, {key: value for key, value in (adapter or {}).items() if key.endswith(_SCALES)})
    return tensors, alphas, adapter


def read_lora(path: Path, family: Family = FLUX1) -> dict[str, LoraLayer]:
    """The layers of a LoRA in any format that diffusers reads for the family, scales resolved.

    Raises:
        UsageError: there is no such file, or it is not safetensors.
        StorageError: the file is damaged.
        BaseModelError: it holds no LoRA for a FLUX.1 transformer, or more than that.
    """
    tensors, alphas, adapter = converted(path, family)
    if adapter and adapter.get(f"{_PREFIX}alpha_pattern"):
        raise _no_lora(path, "its header gives single layers an alpha of their own, which is not supported")
    # None: the conversion from another trainer's format has put the scale into the weights already.
    scales = None if alphas is None else {**(adapter or {}), **alphas}
    layers = {}
    for key, a in tensors.items():
        name = key.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
        partner = f"{_PREFIX}{name}.lora_B.weight"
        if key == f"{_PREFIX}{name}.lora_A.weight" and partner in tensors:
            scale = 1.0 if scales is None else _scale(name, a.shape[0], scales)
            layers[name] = LoraLayer(a, tensors[partner], scale)
    if not layers:
        raise _no_lora(path, "this file holds no LoRA for a FLUX.1 transformer")
    if len(tensors) != 2 * len(layers):
        raise _no_lora(
            path, f"{len(tensors) - 2 * len(layers)} of its {len(tensors)} tensors are no LoRA of the transformer"
        )
    return layers


def _rank_of_partner(name: str, tensors: Mapping[str, torch.Tensor]) -> int | None:
    """The rank of the second half of a layer's change, by the name of the first; None for other names."""
    for first, second in ((".lora_A.", ".lora_B."), (".lora.down.", ".lora.up.")):
        if first in name and (partner := tensors.get(name.replace(first, second))) is not None:
            return partner.shape[1]
    return None


def _require_numbers(path: Path, scales: Mapping[str, Any]) -> None:
    """Alphas and ranks are finite numbers above zero."""
    for name, value in scales.items():
        try:
            is_usable = math.isfinite(value) and value > 0
        except (TypeError, ValueError, RuntimeError, OverflowError):
            is_usable = False
        if not is_usable:
            raise _no_lora(path, f"its {name} is {value!r:.80}: wanted a number above 0")


def read_metadata(path: Path) -> dict[str, str]:
    """The free metadata in the header of a LoRA file.

    Raises:
        UsageError, StorageError: as ``header_of``.
    """
    return dict(header_of(path).metadata)


def header_of(path: Path) -> Header:
    """The header of a LoRA file, true of the file.

    Raises:
        UsageError: there is no such file, or it is a pickle.
        StorageError: the file cannot be read, or is damaged.
    """
    if not path.is_file():
        raise UsageError("there is no such LoRA file", where=str(path), hint="check the path")
    try:
        return read_header(path)
    except PickleError as error:
        raise UsageError(str(error), where=str(path), hint=error.hint) from error
    except TensorFileError as error:
        raise StorageError(str(error), where=str(path), hint=error.hint) from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageError(f"cannot read the file: {reason}", where=str(path), hint="check its permissions") from error


def _no_lora(path: Path, message: str) -> BaseModelError:
    return BaseModelError(message, where=str(path), hint="choose a FLUX.1 LoRA of the transformer alone")


def _scale(name: str, rank: int, stated: dict[str, Any]) -> float:
    """``.alpha`` tensors count first, then the alpha that diffusers stores in the header, else alpha = rank."""
    alpha = stated.get(f"{_PREFIX}{name}.alpha", stated.get(f"{_PREFIX}lora_alpha", rank))
    return float(alpha) / (rank**0.5 if stated.get(f"{_PREFIX}use_rslora") else rank)
