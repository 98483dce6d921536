"""Blocks that live in system memory and come to the device when their turn is near.

    forward    ... leave 3 │ block 4 │ ...          backward   ... │ block 4 │ leave 4 ...
    copies      6 → slot of 3, while 4 and 5 compute            4 - 3 → slot of 4, while 3 and 2 compute

Only what is not trained moves, and only towards the device: the weights in system memory are never written again. A
block always goes into the same slot, number modulo slots, and its parameters are views of that slot from the start. So
nothing has to be exchanged when it comes, and whatever autograd, a checkpoint or bitsandbytes remembered of a weight in
the forward is right again in the backward, as soon as the block is back in its slot. A block therefore need not be
recomputed to be streamed.

That it is back in time is seen to by hooks: of the block, in the forward; of its outputs, whose gradients come before
anything else of it in the backward; of its inputs, whose gradients come after all of it. For autograd takes what was
computed last first; what a checkpoint computes again is part of that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_iter

from fluxtune.memory.transfers import Transfers

T = TypeVar("T")

AHEAD = 2
"""Blocks that are on their way while one computes; the device holds one more."""
_ALIGNMENT = 256
"""Bytes at which tensors begin, as CUDA's kernels like them."""
_FORWARD, _BACKWARD = 1, -1


def spread(items: Sequence[T], number: int) -> list[T]:
    """``number`` of the items, at even distances: the copy of each has the same time, that in which those between two
    of them are computed."""
    return [items[(2 * index + 1) * len(items) // (2 * number)] for index in range(number)]


def to_system_memory(module: nn.Module) -> None:
    """Moves what a module holds and is not trained off the device, what bitsandbytes' layers hold beside it as well."""
    move_frozen(module, "cpu")


def move_frozen(module: nn.Module, device: str | torch.device) -> None:
    """Moves what a module holds and is not trained, as ``to_system_memory`` does, to any device."""
    moved: dict[tuple[int, ...], torch.Tensor] = {}
    for holder, name, tensor in list(_frozen(module)):
        key = _key(tensor)
        if key not in moved:
            moved[key] = tensor.detach().to(device)
        _put(holder, name, tensor, moved[key])


def stream_blocks(
    blocks: Sequence[nn.Module], device: str | torch.device, ahead: int = AHEAD, transfers: Transfers | None = None
) -> BlockStream:
    """Takes the frozen parameters and buffers of ``blocks`` into system memory, from where they are used from now on.

    What is trained, and what is attached later, stays where it is. The blocks seem to live on ``device``, but for
    others their tensors hold anything; ``to`` and ``state_dict`` are of no use to them any more.

    Args:
        blocks: in the order of the forward, wherever they live now. Blocks between them may stay on the device.
        device: where they compute.
        ahead: how many are on their way while one computes. The device holds one more, each as large as the largest
            of those that take turns in its place.
        transfers: how they come to the device; by default over a stream of their own.

    Raises:
        RuntimeError: system memory or the device's does not suffice.
    """
    return BlockStream(blocks, ahead, transfers or Transfers(device))


@dataclass
class _Slot:
    """A place on the device, which block it holds or will hold, and what to wait for until it does."""

    memory: torch.Tensor
    holds: int | None = None
    started: Any = None


class BlockStream:
    """The blocks of one model that take turns on the device; see ``stream_blocks``.

    Attributes:
        blocks: in the order of the forward.
        transfers: what counts the bytes that were copied.
        slots: the memory on the device, of bytes.
        masters: the blocks in system memory, of bytes; never written to.
    """

    def __init__(self, blocks: Sequence[nn.Module], ahead: int, transfers: Transfers) -> None:
        self.transfers = transfers
        sizes = [sum(_aligned(tensor) for tensor in _regions(block).values()) for block in blocks]
        self._number = min(ahead + 1, len(blocks))
        self._slots = [
            _Slot(torch.empty(max(sizes[first :: self._number]), dtype=torch.uint8, device=transfers.device))
            for first in range(self._number)
        ]
        self.masters = [
            self._take(index, block, size) for index, (block, size) in enumerate(zip(blocks, sizes, strict=True))
        ]
        self._current: int | None = None
        self.blocks = list(blocks)
        self._hooks = [
            hook
            for index, block in enumerate(blocks)
            for hook in (
                block.register_forward_pre_hook(partial(self._before, index), with_kwargs=True),
                block.register_forward_hook(partial(self._after, index)),
            )
        ]

    @property
    def slots(self) -> list[torch.Tensor]:
        return [slot.memory for slot in self._slots]

    def end(self) -> None:
        """Leaves the blocks in system memory, where they no longer compute; not between a forward and its backward."""
        for hook in self._hooks:
            hook.remove()
        for index, (block, master) in enumerate(zip(self.blocks, self.masters, strict=True)):
            slot = self._slot(index).memory.untyped_storage()._cdata
            for holder, name, tensor in list(_frozen(block)):
                if tensor.untyped_storage()._cdata == slot:
                    offset = int(tensor.storage_offset()) * tensor.itemsize
                    _put(holder, name, tensor, _view(master, offset, tensor))

    def _take(self, index: int, block: nn.Module, size: int) -> torch.Tensor:
        """Copies a block into its master and makes all that it holds views of its slot."""
        master, slot = self.transfers.hold(size), self._slot(index).memory
        views: dict[tuple[int, ...], torch.Tensor] = {}
        offset = 0
        for key, tensor in _regions(block).items():
            _view(master, offset, tensor).copy_(tensor.detach())
            views[key] = _view(slot, offset, tensor)
            offset += _aligned(tensor)
        for holder, name, tensor in list(_frozen(block)):
            _put(holder, name, tensor, views[_key(tensor)])
        return master

    def _slot(self, index: int) -> _Slot:
        return self._slots[index % self._number]

    def _before(self, index: int, _: nn.Module, args: Any, kwargs: Any) -> None:
        if _in_backward():
            # A checkpoint computes it again.
            self._enter(index, _BACKWARD)
            return
        self._enter(index, _FORWARD)
        for tensor in tree_iter((args, kwargs)):
            # The gradient of a leaf is taken as soon as it is there, before the rest of the block.
            if isinstance(tensor, torch.Tensor) and tensor.grad_fn is not None:
                tensor.register_hook(lambda _: self._leave(index, _BACKWARD))

    def _after(self, index: int, _: nn.Module, __: Any, outputs: Any) -> None:
        if _in_backward():
            return
        for tensor in tree_iter(outputs):
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda _: self._enter(index, _BACKWARD))
        self._leave(index, _FORWARD)

    def _enter(self, index: int, direction: int) -> None:
        """Makes sure that a block is there for all that is computed from now on, and that the next ones are coming."""
        self._current = index
        slot = self._slot(index)
        if slot.holds != index:
            self._start(index)
        self._follow(index, direction, slot)
        self.transfers.wait(slot.started)

    def _leave(self, index: int, direction: int) -> None:
        """Gives a block's place to one that comes later; its last computation has been asked for."""
        if self._current == index:
            self._current = None
            self._follow(index, direction, None)

    def _follow(self, index: int, direction: int, busy: _Slot | None) -> None:
        """Starts the copies of the blocks that come after ``index``, as far as there is place."""
        filled = [busy]
        for _ in range(self._number):
            index += direction
            if not 0 <= index < len(self.masters):
                # After a backward the first blocks come next, which are there; after a forward the last ones, unless
                # it was one without gradients.
                if direction == _BACKWARD or torch.is_grad_enabled():
                    return
                index %= len(self.masters)
            slot = self._slot(index)
            if any(slot is other for other in filled):
                return
            filled.append(slot)
            if slot.holds != index:
                self._start(index)

    def _start(self, index: int) -> None:
        slot, master = self._slot(index), self.masters[index]
        slot.started = self.transfers.upload(slot.memory[: master.numel()], master)
        slot.holds = index


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _frozen(block: nn.Module) -> Iterator[tuple[dict[str, Any], str, torch.Tensor]]:
    """Every tensor of a block that is not trained: what holds it, under which name."""
    for module in block.modules():
        for holder in _holders(module):
            for name, tensor in holder.items():
                if isinstance(tensor, torch.Tensor) and not tensor.requires_grad and tensor.numel():
                    yield holder, name, tensor


def _holders(module: nn.Module) -> Iterator[dict[str, Any]]:
    """Where a module has tensors: bitsandbytes' layers have some beside parameters and buffers."""
    yield module._parameters
    yield module._buffers
    for parameter in module._parameters.values():
        if parameter is not None:
            yield vars(parameter)
            state = getattr(parameter, "quant_state", None)
            while state is not None:
                yield vars(state)
                state = state.state2
    if isinstance(module, nn.Linear) and hasattr(module, "state"):
        yield vars(module.state)


def _put(holder: dict[str, Any], name: str, tensor: torch.Tensor, instead: torch.Tensor) -> None:
    if isinstance(tensor, nn.Parameter):
        # The object stays: it carries what bitsandbytes knows of the weight.
        tensor.data = instead
    else:
        holder[name] = instead


def _key(tensor: torch.Tensor) -> tuple[int, ...]:
    """The same for tensors that are the same memory, as the two names of an 8-bit weight are."""
    return int(tensor.untyped_storage()._cdata), int(tensor.storage_offset()), tensor.nbytes


def _regions(block: nn.Module) -> dict[tuple[int, ...], torch.Tensor]:
    return {_key(tensor): tensor for _, _, tensor in _frozen(block)}


def _aligned(tensor: torch.Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT


def _view(memory: torch.Tensor, offset: int, like: torch.Tensor) -> torch.Tensor:
    """The bytes of ``memory`` from ``offset`` as a tensor of the type, shape and strides of ``like``."""
    return memory[offset : offset + like.nbytes].view(like.dtype).as_strided(like.shape, like.stride())
