"""A store of computed tensors, keyed by the content that they were computed from.

One entry is one safetensors file of named tensors in ``FOLDER/ab/abcdef....safetensors``. The store knows no
model: whoever computes an entry puts everything that decides it (bytes of the picture, size, final caption,
weights of the encoder, settings) into its key, so that a stale entry can never be found, and there is no
option to skip a check.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import platformdirs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from fluxtune.errors import StorageError
from fluxtune.events import Sink, Warning, ignore
from fluxtune.files import write_with


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
    """Entries below one folder, which need not exist yet.

    Several processes may share a folder: an entry appears whole or not at all, and one written twice is the
    same.
    """

    def __init__(self, folder: Path, on_event: Sink = ignore) -> None:
        self.folder = folder
        self.on_event = on_event

    def path(self, key: str) -> Path:
        """The file of an entry."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Whether an entry is there and whole; a damaged one counts as missing, with a warning."""
        path = self.path(key)
        if not path.exists():
            return False
        try:
            with safe_open(path, framework="pt"):
                return True
        except (OSError, SafetensorError) as error:
            self.on_event(Warning(f"damaged cache entry, made again: {error}", where=str(path)))
            return False

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys whose entries have to be made: each once, in order."""
        return [key for key in dict.fromkeys(keys) if not self.has(key)]

    def read(self, key: str) -> dict[str, torch.Tensor]:
        """The tensors of an entry, on the CPU.

        Raises:
            StorageError: the entry is missing or damaged.
        """
        path = self.path(key)
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"the cache entry cannot be read: {error}",
                where=str(path),
                hint="run the command again: entries that are missing or damaged are made anew",
            ) from error

    def write(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write an entry atomically, over an older one if need be.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_with(self.path(key), lambda temporary: save_file(whole, temporary))
