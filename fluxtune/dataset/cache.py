"""A store of computed tensors, keyed by the content that they were computed from.

``FOLDER/*.safetensors`` are shards of up to 64 MiB; each holds whole entries, tensor ``NAME`` of entry ``KEY`` as
``KEY/NAME``. So ten thousand pictures are some dozens of files, and their index is the shards' headers. The store knows
no model: whoever computes an entry puts everything that decides it (bytes of the picture, size, final caption, weights
of the encoder, settings) into its key, so that a stale entry can never be found; there is no option to skip a check.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import platformdirs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fluxtune.errors import StorageError
from fluxtune.events import Sink, Warning, ignore
from fluxtune.files import write_with

Tensors: TypeAlias = Mapping[str, torch.Tensor]

SHARD_BYTES = 64 * 2**20
SHARD_SECONDS = 60.0
"""A shard is written when it is full, or so old: a kill loses no more work than that."""

_OPEN_SHARDS = 64
_LARGEST_HEADER = 100_000_000
"""Bytes; what safetensors itself takes at most."""


def cache_folder() -> Path:
    """``$FLUXTUNE_CACHE``, or the user's cache folder where that is not set."""
    if chosen := os.environ.get("FLUXTUNE_CACHE"):
        return Path(os.path.expanduser(chosen))
    return platformdirs.user_cache_path("fluxtune", appauthor=False)


def key_of(*parts: str | int | float | bytes) -> str:
    """Hex SHA-256 of the parts, each with its type and length: no two lists of parts read the same."""
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else str(part).encode()
        digest.update(f"{type(part).__name__}:{len(content)}:".encode() + content)
    return digest.hexdigest()


class Store:
    """Entries in the shards of one folder, which need not exist yet.

    Several processes may share a folder: a shard appears whole or not at all, and an entry written twice is the same.
    """

    def __init__(self, folder: Path, on_event: Sink = ignore) -> None:
        self.folder = folder
        self.on_event = on_event
        self._shard_of: dict[str, Path] = {}
        self._sizes_of: dict[str, dict[str, int]] = {}
        self._known: set[Path] = set()
        self._open: OrderedDict[Path, Any] = OrderedDict()

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys whose entries have to be made: each once, in order. Damaged shards count as missing, with a
        warning."""
        self._look()
        return [key for key in dict.fromkeys(keys) if key not in self._shard_of]

    def others(self, keys: Iterable[str]) -> tuple[int, int]:
        """How many entries the store holds beside these, and their bytes."""
        self._look()
        others = self._shard_of.keys() - set(keys)
        return len(others), sum(sum(self._sizes_of[key].values()) for key in others)

    def read(self, key: str) -> dict[str, torch.Tensor]:
        """The tensors of an entry, on the CPU.

        Raises:
            StorageError: the entry is missing or damaged.
        """
        if key not in self._shard_of:
            self._look()
        shard = self._shard_of.get(key)
        if shard is None:
            raise _unreadable(self.folder, f"there is no entry {key[:16]}...")
        try:
            opened = self._opened(shard)
            return {name: opened.get_tensor(f"{key}/{name}") for name in self._sizes_of[key]}
        except (OSError, SafetensorError) as error:
            raise _unreadable(shard, str(error)) from error

    @contextmanager
    def writing(self) -> Iterator[Callable[[str, Tensors], None]]:
        """Gives a function that takes ``(key, tensors)``; what it was given is on disk at the end, however that comes
        about, and at most a shard's worth is not before.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        waiting: dict[str, torch.Tensor] = {}
        since = time.monotonic()

        def write(key: str, tensors: Tensors) -> None:
            nonlocal since
            if not waiting:
                since = time.monotonic()
            # A copy: views of one memory cannot be saved together.
            waiting.update({f"{key}/{name}": tensor.detach().cpu().clone() for name, tensor in tensors.items()})
            full = sum(tensor.nbytes for tensor in waiting.values()) >= SHARD_BYTES
            if full or time.monotonic() - since >= SHARD_SECONDS:
                flush()

        def flush() -> None:
            if waiting:
                shard = self.folder / f"{uuid.uuid4().hex}.safetensors"
                whole = {name: tensor.contiguous() for name, tensor in waiting.items()}
                write_with(shard, lambda temporary: save_file(whole, temporary))
                waiting.clear()

        try:
            yield write
        finally:
            flush()

    def write(self, key: str, tensors: Tensors) -> None:
        """One entry as a shard of its own."""
        with self.writing() as write:
            write(key, tensors)

    def _look(self) -> None:
        """Learn the headers of shards that were not seen yet."""
        for shard in sorted(self.folder.glob("*.safetensors")):
            if shard in self._known:
                continue
            self._known.add(shard)
            try:
                sizes = _sizes_in(shard)
                with safe_open(shard, framework="pt"):
                    pass
            except (OSError, ValueError, SafetensorError) as error:
                self.on_event(Warning(f"damaged cache file, made again: {error}", where=str(shard)))
                continue
            for whole, size in sizes.items():
                key, _, name = whole.partition("/")
                # The first shard with an entry keeps it.
                if self._shard_of.setdefault(key, shard) == shard:
                    self._sizes_of.setdefault(key, {})[name] = size

    def _opened(self, shard: Path) -> Any:
        """The shard, mapped into memory; a bounded number of them at once."""
        if shard in self._open:
            self._open.move_to_end(shard)
        else:
            self._open[shard] = safe_open(shard, framework="pt").__enter__()
            if len(self._open) > _OPEN_SHARDS:
                _, oldest = self._open.popitem(last=False)
                oldest.__exit__(None, None, None)
        return self._open[shard]


def _sizes_in(shard: Path) -> dict[str, int]:
    """Bytes of each tensor of a safetensors file, from its header.

    Raises:
        ValueError: it is damaged or cut off.
    """
    with open(shard, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _LARGEST_HEADER:
            raise ValueError("it does not begin with a header")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no table")
    try:
        places = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
        end = max((stop for _, stop in places.values()), default=0)
        sizes = {name: stop - start for name, (start, stop) in places.items()}
    except (TypeError, KeyError) as error:
        raise ValueError("its header is damaged") from error
    if shard.stat().st_size != 8 + length + end:
        raise ValueError("it is cut off")
    return sizes


def _unreadable(where: Path, reason: str) -> StorageError:
    return StorageError(
        f"the cache entry cannot be read: {reason}",
        where=str(where),
        hint="run the command again: entries that are missing or damaged are made anew",
    )
