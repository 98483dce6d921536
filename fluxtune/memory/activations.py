"""The inputs of recomputed blocks wait for the backward in system memory instead of the device's.

When every block is recomputed, its input is all that a checkpoint keeps: for FLUX.1-dev at 1024 px, batch 1, in bf16
(512 + 4,096) tokens x 3,072 features x 2 bytes = 28.3 MB, 1.61 GB for 57 blocks. To save them by recomputation would
take checkpoints over several blocks, and so another forward of 74.4 TF. Over the bus they go out in the forward and
come back in the backward, once each: 0.064 s either way at 80 % of PCIe 4.0 x16 (25.2 GB/s), 0.13 s at x8 or 3.0 x16.
A forward takes at least 0.45 s on a card of 165 TF/s (4090) and 2.9 s on one of 25 (3060): the bus hides behind the
computing, with room for streamed blocks, of which one is as much as the inputs of 2 to 16.

Offloading beats recomputing where bytes / bus < operations / card: with that bus, for what takes more than 6.5 thousand
operations a byte on the one card, 1 thousand on the other. A block's input takes 46 thousand (a forward for all of
them), the result of attention 9.2 (0.26 TF for 28.3 MB), all products of a block 5 (1.3 TF for about 260 MB). Only
inputs are offloaded here. All of this is computed, none measured on a card.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch.autograd.graph import saved_tensors_hooks

from fluxtune.memory.transfers import Transfers

P = ParamSpec("P")
T = TypeVar("T")


class ActivationOffload:
    """Takes what checkpoints keep to system memory, and brings it back block by block, ahead of the backward.

    Args:
        device: where the blocks compute; tensors that are elsewhere stay there.
        ahead: how many blocks' inputs are on their way back while one block is computed again.
        transfers: how they go and come; by default over a stream of their own.

    Attributes:
        smallest: bytes below which a tensor stays: with a sample's modulation there is nothing to gain.
    """

    smallest = 2**20

    def __init__(self, device: str | torch.device, ahead: int = 2, transfers: Transfers | None = None) -> None:
        self.transfers = transfers or Transfers(device)
        self._ahead = ahead
        self._last: weakref.ref[_Parcel] | None = None

    def around(self, checkpointed: Callable[P, T]) -> Callable[P, T]:
        """``checkpointed``, which computes a block under a (non-reentrant) checkpoint, with its inputs offloaded.

        The checkpoint must be inside: whatever its own hooks do not take care of is what goes. Arguments that are
        keywords a checkpoint keeps for itself, and they stay.
        """

        def computed(*args: P.args, **kwargs: P.kwargs) -> T:
            if not torch.is_grad_enabled():
                return checkpointed(*args, **kwargs)
            parcel = _Parcel(self.transfers, self._last)
            self._last = weakref.ref(parcel)

            def pack(tensor: torch.Tensor) -> Any:
                small = tensor.nbytes < self.smallest or tensor.device.type != self.transfers.device.type
                return tensor if small else (parcel, parcel.send(tensor))

            def unpack(packed: Any) -> torch.Tensor:
                if isinstance(packed, torch.Tensor):
                    return packed
                parcel, number = packed
                parcel.fetch(self._ahead)
                return parcel.arrived(number)

            with saved_tensors_hooks(pack, unpack):
                return checkpointed(*args, **kwargs)

        return computed


class _Parcel:
    """The inputs of one block; kept by the graph of the backward, as long as that needs it."""

    def __init__(self, transfers: Transfers, before: weakref.ref[_Parcel] | None) -> None:
        self._transfers, self._before = transfers, before
        self._held: list[torch.Tensor] = []
        self._back: list[tuple[torch.Tensor, Any]] = []

    def send(self, tensor: torch.Tensor) -> int:
        """Puts a tensor in; returns its number."""
        held = self._transfers.hold_like(tensor)
        self._transfers.download(held, tensor.detach())
        self._held.append(held)
        return len(self._held) - 1

    def fetch(self, ahead: int) -> None:
        """Starts to bring all of it back, and then the parcels of so many blocks before."""
        if not self._back:
            device = self._transfers.device
            for held in self._held:
                target = torch.empty_like(held, device=device)
                self._back.append((target, self._transfers.upload(target, held)))
        before = self._before() if self._before is not None else None
        if ahead and before is not None:
            before.fetch(ahead - 1)

    def arrived(self, number: int) -> torch.Tensor:
        """A tensor that was fetched, to compute with from now on."""
        tensor, started = self._back[number]
        self._transfers.wait(started)
        return tensor
