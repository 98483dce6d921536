"""What is alive on a device while work runs, by category and phase: counted from what every operation returns.

It sees storages, not tensors: views and in-place operations hold nothing new, and what autograd saves is alive as long
as it is. It works on real tensors and on fake ones alike, which have sizes and no content. What a kernel allocates for
itself and gives back before it returns is not seen.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from fluxtune.memory.allocator import CachingAllocator, rounded

TEMPORARIES = "temporaries"
"""Whatever nobody has claimed for another category."""


@dataclass
class _Held:
    """A storage that is alive; `block` is its place in the allocator."""

    storage: weakref.ref[torch.UntypedStorage]
    size: int
    category: str
    block: Any


@dataclass(frozen=True)
class Moment:
    """What was alive after an operation, in bytes by category, and what the allocator had taken from the card."""

    phase: str
    alive: dict[str, int]
    reserved: int = 0

    @property
    def bytes(self) -> int:
        """All categories together."""
        return sum(self.alive.values())


class Ledger(TorchDispatchMode):
    """Counts what is alive on one device. Open it as a context, around or inside that of fake tensors.

    Args:
        device: ``cpu``, ``cuda`` or ``meta``; what lives elsewhere is not counted.
        as_cuda: count in the blocks of CUDA's caching allocator, and what it reserves; else byte for byte.
        capacity: bytes that the allocator gets from the card before it gives back what is free.

    Attributes:
        moments: one after every operation that changed what is alive, in their order.
        reserved: most bytes that the allocator had taken from the card; 0 without ``as_cuda``.
    """

    def __init__(self, device: str, as_cuda: bool = True, capacity: int | None = None) -> None:
        super().__init__()
        self.moments: list[Moment] = []
        self._device = device
        self._allocator = CachingAllocator(capacity) if as_cuda else None
        self._held: dict[int, _Held] = {}
        self._alive: Counter[str] = Counter()
        self._phase = ""
        self._changed = False

    @property
    def reserved(self) -> int:
        return self._allocator.reserved if self._allocator is not None else 0

    @property
    def peak(self) -> Moment:
        """The first moment at which most was alive."""
        return max(self.moments, key=lambda moment: moment.bytes)

    def claim(self, tensor: torch.Tensor, category: str) -> None:
        """Counts what holds a tensor under a category, whether it is known already or not."""
        storage = tensor.untyped_storage()
        if tensor.device.type != self._device:
            return
        held = self._held.get(storage._cdata)
        if held is None:
            self._take(storage, category)
        else:
            self._move(held, category)
        self._note()

    def exclude(self, tensor: torch.Tensor) -> None:
        """Never counts what holds a tensor: it stands for memory elsewhere."""
        storage = tensor.untyped_storage()
        held = self._held.get(storage._cdata)
        if held is not None:
            self._alive[held.category] -= held.size
            if held.block is not None and self._allocator is not None:
                self._allocator.release(held.block)
        key = storage._cdata
        self._held[key] = _Held(weakref.ref(storage, partial(self._give_back, key)), 0, TEMPORARIES, None)

    def claim_rest(self, category: str) -> None:
        """Counts everything that is alive and nobody has claimed under a category."""
        for held in self._held.values():
            if held.category == TEMPORARIES:
                self._move(held, category)
        self._note()

    def empty_cache(self) -> None:
        """As ``torch.cuda.empty_cache``: the allocator gives back what is free to the card."""
        if self._allocator is not None:
            self._allocator.empty()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The time in which moments are of a phase."""
        before, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        for tensor in tree_iter(returned):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._held and tensor.device.type == self._device:
                    self._take(storage, TEMPORARIES)
        self._note()
        return returned

    def _take(self, storage: torch.UntypedStorage, category: str) -> None:
        size, block = storage.nbytes(), None
        if self._allocator is not None:
            size, block = rounded(size), self._allocator.allocate(size)
        key = storage._cdata
        self._held[key] = _Held(weakref.ref(storage, partial(self._give_back, key)), size, category, block)
        self._alive[category] += size
        self._changed = True

    def _give_back(self, key: int, _: object) -> None:
        held = self._held.pop(key)
        self._alive[held.category] -= held.size
        self._changed = True
        if held.block is not None and self._allocator is not None:
            self._allocator.release(held.block)

    def _move(self, held: _Held, category: str) -> None:
        self._alive[held.category] -= held.size
        self._alive[category] += held.size
        self._changed = self._changed or held.category != category
        held.category = category

    def _note(self) -> None:
        if self._changed:
            self._changed = False
            alive = {name: size for name, size in self._alive.items() if size}
            self.moments.append(Moment(self._phase, alive, self.reserved))
