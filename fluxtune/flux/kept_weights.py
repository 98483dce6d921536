"""Quantised weights on disk, so that a model that was quantised once need not be again.

Each layer is an entry of the store of ``$FLUXTUNE_CACHE``, by a key that holds everything its bytes depend on. So what
is damaged, or was not written before a kill, is made again and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from fluxtune.dataset.cache import Store, Tensors, cache_folder, key_of, open_store
from fluxtune.events import Phase, Sink
from fluxtune.files import require_space
from fluxtune.memory.quantize import QuantizedPrecision, made_by, packed_bytes, packed_linear, packed_tensors

_FORMAT = 1


@dataclass(frozen=True)
class KeptWeights:
    """The layers of one model: ``keys`` by their paths, those ``missing`` in the store, and how to write them."""

    store: Store
    keys: dict[str, str]
    missing: frozenset[str]
    write: Callable[[str, Tensors], None]
    precision: QuantizedPrecision
    dtype: torch.dtype
    device: str

    def has(self, path: str) -> bool:
        """Whether the layer of a path need not be quantised again."""
        return path in self.keys and self.keys[path] not in self.missing

    def take(self, path: str, layer: nn.Linear, quantize: Callable[[], nn.Module]) -> nn.Module:
        """The quantised layer of a path: from the store, or ``quantize``'s, which the store keeps from then on."""
        key = self.keys[path]
        if self.has(path):
            return packed_linear(layer, self.store.read(key), self.precision, self.dtype, self.device)
        made = quantize()
        self.write(key, packed_tensors(made, self.precision))
        return made


@contextmanager
def kept_weights(
    layers: dict[str, nn.Linear],
    fingerprint: str,
    precision: QuantizedPrecision,
    dtype: torch.dtype,
    device: str,
    on_event: Sink,
) -> Iterator[KeptWeights]:
    """What the store has of a model's layers, and a place for the rest; all of it is on disk at the end.

    Args:
        layers: those that are quantised, by their paths; they may be on the meta device.
        fingerprint: of the files with the weights.

    Raises:
        StorageError: the disk has no room for what is missing, or the cache cannot be written.
    """
    how = (_FORMAT, made_by(precision), precision, str(dtype), torch.device(device).type, fingerprint)
    keys = {path: key_of("quantized", *how, path) for path in layers}
    store = open_store("quantized", on_event)
    missing = frozenset(store.missing(keys.values()))
    needed = sum(packed_bytes(layer, precision) for path, layer in layers.items() if keys[path] in missing)
    new = f"{len(missing)} new ({needed / 2**30:.1f} GiB)" if missing else "0 new"
    on_event(Phase("cache quantized weights", f"{new}, {len(keys) - len(missing)} from the cache"))
    require_space(cache_folder(), needed, "quantised weights")
    with store.writing() as write:
        yield KeptWeights(store, keys, missing, write, precision, dtype, device)
