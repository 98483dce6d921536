"""LoRA files in the form that every reader takes: PEFT keys, the scale folded into B, no alpha anywhere.

``transformer.PATH.lora_A.weight [rank, in]`` and ``transformer.PATH.lora_B.weight [out, rank]``. A reader that knows
no alpha applies ``B @ A``; one that looks for alpha finds none and does the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from fluxtune.errors import StorageError, UsageError, VerificationError
from fluxtune.files import write_with
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.metadata import LoraFacts, lora_metadata
from fluxtune.tensor_files import Header, PickleError, TensorFileError, read_header

_PREFIX = "transformer."
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
    digest = hashlib.sha256()

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            for piece in _aligned(save(tensors, metadata=metadata)):
                digest.update(piece)
                file.write(piece)
        try:
            check(temporary)
        except VerificationError as error:
            error.where = str(path)
            raise

    write_with(path, write, make_folder)
    return digest.hexdigest()


def _aligned(serialised: bytes) -> Iterator[bytes | memoryview]:
    """The same file with its header padded with spaces, so that the tensors begin at a multiple of 64 bytes; in pieces,
    for it may be as large as the memory that is left.

    Readers map the file into memory, and a matrix product over unaligned weights may round another way: with this,
    a loaded LoRA gives the trained one's pictures to the bit.
    """
    length = int.from_bytes(serialised[:8], "little")
    padding = -(8 + length) % 64
    yield (length + padding).to_bytes(8, "little")
    yield serialised[8 : 8 + length] + b" " * padding
    yield memoryview(serialised)[8 + length :]


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
