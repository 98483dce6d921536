"""A store of computed tensors, keyed by the content that they were computed from.

``FOLDER/*.safetensors`` are shards of up to 64 MiB; each holds whole entries, tensor ``NAME`` of entry ``KEY`` as
``KEY/NAME``, and in its metadata the CRC-32 of each entry. So ten thousand pictures are some dozens of files, and their
index is the shards' headers. The store knows no model: whoever computes an entry puts everything that decides it (bytes
of the picture, size, final caption, weights of the encoder, settings) into its key, so that a stale entry can never be
found; there is no option to skip a check.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
import zlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fluxtune.environment.folders import cache_folder
from fluxtune.errors import StorageError
from fluxtune.events import Sink, Warning, ignore
from fluxtune.files import write_with
from fluxtune.tensor_files import read_header

Tensors: TypeAlias = Mapping[str, torch.Tensor]

SHARD_BYTES = 64 * 2**20
SHARD_ENTRIES = 10_000
SHARD_SECONDS = 60.0
"""A shard is written when it is full, or so old: a kill loses no more work than that."""

_LAYOUT = 2
"""Of the shards; part of the folders' names, so that what an older or newer fluxtune wrote lies beside."""
_OPEN_SHARDS = 64
_READERS = min(4, os.cpu_count() or 1)
"""Shards that are compared with their checksums at once."""
_NOT_AS_WRITTEN = "an entry is not what was written (its checksum differs)"


def key_of(*parts: str | int | float | bytes) -> str:
    """Hex SHA-256 of the parts, each with its type and length: no two lists of parts read the same."""
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else str(part).encode()
        digest.update(f"{type(part).__name__}:{len(content)}:".encode() + content)
    return digest.hexdigest()


def open_store(kind: str, on_event: Sink) -> Store:
    """The user's store of one kind of entries: ``latents``, ``texts``..."""
    return Store(cache_folder() / f"{kind}-{_LAYOUT}", on_event)


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where an entry lies, the bytes of its tensors by their names, and its checksum."""

    shard: Path
    sizes: dict[str, int]
    checksum: str


class Store:
    """Entries in the shards of one folder, which need not exist yet.

    Several processes may share a folder: a shard appears whole or not at all, and an entry written twice is the same.
    A shard that turns out to be damaged is told in a warning and deleted, and its entries are missing.
    """

    def __init__(self, folder: Path, on_event: Sink = ignore) -> None:
        self.folder = folder
        self.on_event = on_event
        self._entries: dict[str, _Entry] = {}
        self._sound: dict[str, Path] = {}
        self._known: set[Path] = set()
        self._damaged: set[Path] = set()
        self._open: OrderedDict[Path, Any] = OrderedDict()

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys whose entries have to be made: each once, in order.

        The others are read once and compared with their checksums (4 GB a second and core): what is damaged has to
        be found while it can still be made again.
        """
        wanted = list(dict.fromkeys(keys))
        self._look()
        self._check(wanted)
        return [key for key in wanted if key not in self._entries]

    def others(self, keys: Iterable[str]) -> tuple[int, int]:
        """How many entries the store holds beside these, and their bytes."""
        self._look()
        others = self._entries.keys() - set(keys)
        return len(others), sum(sum(self._entries[key].sizes.values()) for key in others)

    def read(self, key: str) -> dict[str, torch.Tensor]:
        """The tensors of an entry, on the CPU.

        Raises:
            StorageError: the entry is missing or damaged.
        """
        if key not in self._entries:
            self._look()
        entry = self._entries.get(key)
        if entry is None:
            raise _unreadable(self.folder, f"there is no entry {key[:16]}...")
        try:
            opened = self._opened(entry.shard)
            tensors = {name: opened.get_tensor(f"{key}/{name}") for name in entry.sizes}
        except (OSError, SafetensorError) as error:
            raise _unreadable(entry.shard, str(error)) from error
        if self._sound.get(key) != entry.shard:
            if _checksum(tensors) != entry.checksum:
                raise _unreadable(entry.shard, _NOT_AS_WRITTEN)
            self._sound[key] = entry.shard
        return tensors

    @contextmanager
    def writing(self) -> Iterator[Callable[[str, Tensors], None]]:
        """Gives a function that takes ``(key, tensors)``; what it was given is on disk at the end, however that comes
        about, and at most a shard's worth is not before.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        waiting: dict[str, dict[str, torch.Tensor]] = {}
        size, since = 0, time.monotonic()

        def write(key: str, tensors: Tensors) -> None:
            nonlocal size, since
            if not waiting:
                size, since = 0, time.monotonic()
            # A copy: views of one memory cannot be saved together.
            waiting[key] = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
            size += sum(tensor.nbytes for tensor in waiting[key].values())
            if size >= SHARD_BYTES or len(waiting) >= SHARD_ENTRIES or time.monotonic() - since >= SHARD_SECONDS:
                flush()

        def flush() -> None:
            if waiting:
                shard = self.folder / f"{uuid.uuid4().hex}.safetensors"
                whole = {f"{key}/{name}": tensor for key, entry in waiting.items() for name, tensor in entry.items()}
                checksums = {key: _checksum(entry) for key, entry in waiting.items()}
                write_with(shard, lambda temporary: save_file(whole, temporary, checksums))
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
            if shard in self._known or shard in self._damaged:
                continue
            self._known.add(shard)
            try:
                entries = _entries_in(shard)
            except (OSError, ValueError) as error:
                self._leave_out(shard, error)
                continue
            for key, entry in entries.items():
                # The first shard with an entry keeps it.
                self._entries.setdefault(key, entry)

    def _check(self, keys: list[str]) -> None:
        """Compare entries with their checksums, each once. Shards with a wrong one are left out."""
        while unread := [key for key in keys if key in self._entries and self._sound.get(key) != self._at(key)]:
            by_shard: defaultdict[Path, list[str]] = defaultdict(list)
            for key in unread:
                by_shard[self._at(key)].append(key)
            with ThreadPoolExecutor(_READERS, thread_name_prefix="checksums") as pool:
                errors = list(pool.map(self._error_in, by_shard, by_shard.values()))
            for (shard, held), error in zip(by_shard.items(), errors, strict=True):
                if error is None:
                    self._sound.update(dict.fromkeys(held, shard))
                else:
                    self._leave_out(shard, error)
            if any(errors):
                # Another shard may hold an entry of a damaged one, too.
                self._entries.clear()
                self._known.clear()
                self._look()

    def _at(self, key: str) -> Path:
        return self._entries[key].shard

    def _error_in(self, shard: Path, keys: list[str]) -> Exception | None:
        """What is wrong with some entries of a shard."""
        try:
            with safe_open(shard, framework="pt") as opened:
                for key in keys:
                    entry = self._entries[key]
                    if _checksum({name: opened.get_tensor(f"{key}/{name}") for name in entry.sizes}) != entry.checksum:
                        return ValueError(_NOT_AS_WRITTEN)
        except (OSError, SafetensorError) as error:
            return error
        return None

    def _leave_out(self, shard: Path, error: Exception) -> None:
        """Tell of a damaged shard, and delete it unless it is only that it cannot be read."""
        self.on_event(Warning(f"damaged cache file, made again: {error}", where=str(shard)))
        self._damaged.add(shard)
        if not isinstance(error, OSError):
            with suppress(OSError):
                shard.unlink()

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


def _entries_in(shard: Path) -> dict[str, _Entry]:
    """The entries of a shard, from its header.

    Raises:
        ValueError: it is damaged or cut off.
    """
    header = read_header(shard)
    entries: dict[str, _Entry] = {}
    for whole, tensor in header.tensors.items():
        key, _, name = whole.partition("/")
        if key not in header.metadata:
            raise ValueError("an entry has no checksum")
        entries.setdefault(key, _Entry(shard, {}, header.metadata[key])).sizes[name] = tensor.stop - tensor.start
    return entries


def _checksum(tensors: Tensors) -> str:
    """Hex CRC-32 of the tensors of an entry on the CPU, with their names, types and shapes."""
    value = 0
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name}:{tensor.dtype}:{list(tensor.shape)}:".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def _unreadable(where: Path, reason: str) -> StorageError:
    return StorageError(
        f"the cache entry cannot be read: {reason}",
        where=str(where),
        hint="run the command again: entries that are missing or damaged are made anew",
    )
