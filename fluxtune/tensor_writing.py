"""Safetensors files larger than memory: the header first, then tensors or rows of them in any order.

Layout: eight bytes with the header's length, the header (JSON: name -> dtype, shape, first and last byte), the bytes
of all tensors without a gap (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fluxtune.errors import StorageError
from fluxtune.files import write_with

if TYPE_CHECKING:
    import torch

_NAMES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "uint8": "U8",
    "int8": "I8",
}
_ALIGNMENT = 64
"""Bytes: where the tensors begin, so that a mapped file has them aligned."""


@dataclass(frozen=True)
class Spec:
    """A tensor of a file to be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """That it takes."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorWriter:
    """Fills one file; ``put`` takes tensors in any order, and a part of a tensor's rows at a time."""

    def __init__(self, file: BinaryIO, specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> None:
        self._file = file
        self._specs = specs
        self._missing = {name: spec.bytes for name, spec in specs.items()}
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        self._starts, end = {}, 0
        # Largest alignment first, as safetensors' own writer has them.
        for name, spec in sorted(specs.items(), key=lambda each: (-each[1].dtype.itemsize, each[0])):
            self._starts[name] = end
            kind = _NAMES[str(spec.dtype).removeprefix("torch.")]
            header[name] = {"dtype": kind, "shape": list(spec.shape), "data_offsets": [end, end + spec.bytes]}
            end += spec.bytes
        text = json.dumps(header).encode()
        text += b" " * (-(8 + len(text)) % _ALIGNMENT)
        self._first = 8 + len(text)
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(self._first + end)

    def put(self, name: str, tensor: torch.Tensor, row: int = 0) -> None:
        """Write a tensor, or as many of its rows as are given, from ``row`` on."""
        import torch

        spec = self._specs[name]
        per_row = spec.bytes // spec.shape[0] if spec.shape else spec.bytes
        content = tensor.detach().to("cpu", spec.dtype).contiguous().flatten().view(torch.uint8).numpy()
        self._file.seek(self._first + self._starts[name] + row * per_row)
        self._file.write(content.data)
        self._missing[name] -= content.nbytes

    def require_whole(self, where: Path) -> None:
        """Refuse a file with bytes that were not written, or written twice.

        Raises:
            StorageError: there are some.
        """
        if odd := [name for name, missing in self._missing.items() if missing]:
            raise StorageError(f"{len(odd)} tensors are not whole, the first is {odd[0]}", where=str(where))


def write_tensors(
    path: Path,
    specs: Mapping[str, Spec],
    metadata: Mapping[str, str],
    fill: Callable[[TensorWriter], None],
    check: Callable[[Path], None] = lambda _: None,
) -> None:
    """Write a file that gets its name once ``fill`` is done, ``check`` found nothing wrong in it, and it is synced.

    Raises:
        StorageError: it cannot be written, or is not whole at the end.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            writer = TensorWriter(file, specs, metadata)
            fill(writer)
            writer.require_whole(path)
        check(temporary)

    write_with(path, write)
