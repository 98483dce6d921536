"""Files of tensors: only safetensors, and only those whose header is true of the file.

A header is checked here before any library maps the file: what it says is bounded, unambiguous and covers every byte.
Pickles can run code when they are opened, so they are told by their first bytes and never opened. Format: 8 bytes with
the length of the header, the header as JSON, the tensors without gaps (github.com/huggingface/safetensors, README).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGEST_HEADER = 25_000_000
"""Bytes; what the hub reads at most. The header of FLUX.1 has 0.1 million."""
MOST_TENSORS = 100_000
"""FLUX.1's transformer has 780, the state of a large adapter's optimizer some thousands."""
_MOST_VALUES = 20 * MOST_TENSORS
"""Of JSON in a header, so that reading it takes bounded memory."""

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".npz", ".npy", ".joblib")
"""How files are named that may hold a pickle."""

BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E5M2FNUZ", "F8_E4M3FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Data type -> bits of a number."""

_BEGINNINGS = {
    b"GGUF": "a GGUF file",
    b"\x93NUMPY": "an array of numpy",
    b"version https://git-lfs": "the pointer of Git LFS to a file that was not fetched",
    b"<": "a web page or XML, as a failed download leaves it",
    b"{": "JSON",
}
_FETCH = "download the file again"
_CONVERT = (
    'convert it, where you trust whoever made it: python -c "import torch, safetensors.torch as s; '
    "s.save_file(torch.load('IN', weights_only=True), 'OUT.safetensors')\""
)


class TensorFileError(ValueError):
    """A file that is no whole safetensors file; the message says what is wrong with it, ``hint`` what mends it."""

    def __init__(self, message: str, hint: str = _FETCH) -> None:
        super().__init__(message)
        self.hint = hint


class PickleError(TensorFileError):
    """A file that is a pickle, or is named like one."""

    def __init__(self, seen: str) -> None:
        super().__init__(f"{seen}, which can run code when it is opened: only safetensors is read", _CONVERT)


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its type as the format names it, its shape, its first byte after the header and the byte
    behind its last."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """What a file says of itself: ``tensors`` by their names, and free ``metadata``."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """The header of a safetensors file, true of the file to its last byte.

    Raises:
        PickleError: it is a pickle, by its name or its content.
        TensorFileError: it is something else, cut off, or its header contradicts itself or the file.
        OSError: it cannot be read.
    """
    refuse_pickle_names(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8 or length > min(LARGEST_HEADER, size - 8):
            raise _unlike(first + file.read(256), size, length)
        text = file.read(length)
    header = _parsed(text)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise TensorFileError("the metadata of its header is no table of texts")
    if len(header) > MOST_TENSORS:
        raise TensorFileError(f"its header lists {len(header):,} tensors: wanted {MOST_TENSORS:,} at most")
    tensors = {name: _entry(name, value) for name, value in header.items()}
    _require_cover(tensors, size - 8 - length)
    return Header(tensors, metadata)


def refuse_pickle_names(path: Path) -> None:
    """Refuse a file by its name.

    Raises:
        PickleError: it is named like a pickle.
    """
    if path.suffix.lower() in PICKLES:
        raise PickleError(f"this is a {path.suffix} file")


def pickles_in(folder: Path) -> list[str]:
    """The names of files below a folder that are named like pickles of weights."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix.lower() in PICKLES)


def _unlike(head: bytes, size: int, length: int) -> TensorFileError:
    """What a file is that does not begin with the length of a header."""
    if size == 0:
        return TensorFileError("the file is empty (0 bytes)")
    # A ZIP is how torch.save packs a pickle; the others are the protocols 2 to 5 of one, whose first opcode follows.
    if head[:4] == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05"):
        return PickleError("this is a pickle")
    seen = next((noun for start, noun in _BEGINNINGS.items() if head.lstrip().startswith(start)), None)
    if seen is not None:
        return TensorFileError(f"this is {seen}, and no safetensors file")
    if size < 8:
        return TensorFileError(f"the file is cut off: it has {size} bytes")
    if length > LARGEST_HEADER:
        return TensorFileError("this is no safetensors file, or its first bytes are damaged")
    return TensorFileError(f"the file is cut off: its header has {length:,} bytes, the file {size:,}")


def _parsed(text: bytes) -> dict[str, Any]:
    if sum(map(text.count, (b"{", b"[", b","))) > _MOST_VALUES:
        raise TensorFileError(f"its header holds too much: wanted {MOST_TENSORS:,} tensors at most")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_doubles)
    except TensorFileError:
        raise
    except (ValueError, RecursionError):
        raise TensorFileError("its header is no JSON") from None
    if not isinstance(header, dict):
        raise TensorFileError("its header is no table")
    return header


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise TensorFileError(f"its header says {next(name for name in names if names.count(name) > 1)!r} twice")
    return table


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise TensorFileError(f"its header describes {name!r} by something else than type, shape and place")
    shape, offsets = value["shape"], value["data_offsets"]
    if not isinstance(value["dtype"], str) or value["dtype"] not in BITS:
        raise TensorFileError(f"{name!r} is of the unknown type {value['dtype']!r:.40}")
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        raise TensorFileError(f"{name!r} has the impossible shape {shape!r:.80}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise TensorFileError(f"{name!r} lies at the impossible place {offsets!r:.80}")
    bits, (start, stop) = math.prod(shape) * BITS[value["dtype"]], offsets
    if bits != (stop - start) * 8:
        raise TensorFileError(
            f"{name!r} is {value['dtype']} {shape!r:.80}, which is not the {stop - start:,} bytes that it shall take"
        )
    return Entry(value["dtype"], tuple(shape), start, stop)


def _is_count(value: Any) -> bool:
    """A whole number that 64 bits hold, as the format wants it."""
    return type(value) is int and 0 <= value < 2**63


def _require_cover(tensors: Mapping[str, Entry], size: int) -> None:
    """The tensors lie one behind the other, and the last one ends where the file does."""
    end = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            fault = "lies over another tensor" if entry.start < end else "leaves a gap before it"
            raise TensorFileError(f"{name!r} {fault}: it begins at byte {entry.start:,} instead of {end:,}")
        end = entry.stop
    if end > size:
        raise TensorFileError(f"the file is cut off: its tensors take {end:,} bytes, and there are {size:,}")
    if end < size:
        raise TensorFileError(f"the file has {size - end:,} bytes behind its tensors that no header tells of")
