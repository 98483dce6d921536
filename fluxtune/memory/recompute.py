"""What each block keeps from the forward for the backward; the rest it computes again when its turn comes.

Gradient checkpointing (arXiv 1604.06174), block by block, with four choices of what is kept beside a block's input. A
block that keeps its products computes only what goes element by element again: per byte that saves most time.

Of what a policy would keep, only that is kept from which something is computed again that the backward asks for. The
last product of a residual branch is not: its sum with the residual is the next block's input. `create_selective_
checkpoint_contexts` of torch would keep that too, and both the product of a frozen layer and its sum with an adapter's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

Kept = Literal["nothing", "attention", "products", "everything"]
"""From the least memory and the most work to the most memory and none."""

T = TypeVar("T")

_ATTENTION = (
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
)
_PRODUCTS = (
    *_ATTENTION,
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::linear",
    "aten::_int_mm",
    "aten::_scaled_mm",
    "bitsandbytes::int8_scaled_mm",
    "bitsandbytes::int8_mixed_scaled_mm",
    "bitsandbytes::gemm_4bit",
    "bitsandbytes::gemv_4bit",
)
_OPERATIONS: dict[Kept, frozenset[str]] = {
    "nothing": frozenset(),
    "attention": frozenset(_ATTENTION),
    "products": frozenset(_PRODUCTS),
}


def recompute_blocks(
    blocks: Sequence[nn.Module],
    kept: Sequence[Kept],
    around: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
) -> None:
    """Makes each block keep what ``kept`` says of it, from now on; gradients stay what they were, to the bit.

    What was said of the blocks before holds no longer. Not between a forward and its backward.

    Args:
        kept: one for each block. ``nothing``: only the block's input. ``attention``: the results of attention, too.
            ``products``: those of matrix products and attention, neither of which is computed again.
            ``everything``: as autograd does by itself.
        around: what computes a block under its checkpoint -> what does so and takes care of the block's inputs, such
            as ``ActivationOffload.around``.
    """
    checkpointed = around(checkpoint) if around else checkpoint
    for block, what in zip(blocks, kept, strict=True):
        recomputed = vars(block).get("forward")
        if isinstance(recomputed, partial) and recomputed.func is _checkpointed:
            del block.forward
        if what != "everything":
            block.forward = partial(_checkpointed, checkpointed, block.forward, _OPERATIONS[what])


def keep_last(number: int, attention: int = 0, products: int = 0, everything: int = 0) -> list[Kept]:
    """What each of ``number`` blocks in a row keeps, when so many keep so much: the last ones most.

    What the last blocks keep is free again before the first ones, which keep least, are computed again.
    """
    counts: dict[Kept, int] = {
        "nothing": number - attention - products - everything,
        "attention": attention,
        "products": products,
        "everything": everything,
    }
    return [kept for kept, count in counts.items() for _ in range(count)]


def kept_product(compute: Callable[[], T]) -> T:
    """The result of ``compute``: of a matrix product and all that belongs to it, such as unpacking its weights.

    Where products are kept, the result is kept as a whole, and when the block is computed again, nothing of it runs.
    To be called where autograd does not look, in the forward of a ``torch.autograd.Function``.

    Args:
        compute: returns new tensors, one or a tuple.
    """
    mode: _Recording | _Replaying | None = getattr(_thread, "mode", None)
    result: T = mode.result_of(compute) if mode is not None and mode.keeps_products else compute()
    return result


_thread = threading.local()
"""`mode`: that of the block which is being computed."""


def _checkpointed(
    checkpointed: Callable[..., T],
    forward: Callable[..., T],
    operations: frozenset[str],
    /,
    *args: Any,
    **kwargs: Any,
) -> T:
    """``forward`` under a checkpoint. Its arguments go in by place: torch looks for devices among those alone."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    names, values = list(kwargs), list(kwargs.values())

    def run(*given: Any) -> T:
        return forward(*given[: len(args)], **dict(zip(names, given[len(args) :], strict=True)))

    return checkpointed(run, *args, *values, use_reentrant=False, context_fn=partial(_contexts, operations))


def _contexts(operations: frozenset[str]) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    if not operations:
        return nullcontext(), nullcontext()
    results: list[_Result] = []
    return _Recording(operations, results), _Replaying(operations, results)


class _Result:
    """What an operation returned: tensors, or how to make empty ones of their kind, and other values."""

    def __init__(self, returned: Any) -> None:
        self._is_one = isinstance(returned, torch.Tensor)
        # Not the tensors themselves: autograd hangs the graph on them.
        values = (returned,) if self._is_one else returned
        self.values = [value.detach() if isinstance(value, torch.Tensor) else value for value in values]

    def keep_only(self, needed: set[int]) -> None:
        """Lets go of all other tensors: since nothing is computed from them, empty ones will do."""
        for place, value in enumerate(self.values):
            if isinstance(value, torch.Tensor) and place not in needed:
                self.values[place] = partial(
                    torch.empty_strided, value.size(), value.stride(), dtype=value.dtype, device=value.device
                )

    def take(self) -> Any:
        """What was returned, once: it is not held any longer."""
        values, self.values = [each() if isinstance(each, partial) else each for each in self.values], []
        return values[0] if self._is_one else tuple(values)


class _Mode(TorchDispatchMode):
    """Sees every operation of a block, below autograd, and those that autograd does not see."""

    def __init__(self, operations: frozenset[str], results: list[_Result]) -> None:
        super().__init__()
        self.keeps_products = operations == _OPERATIONS["products"]
        self._operations, self._results = operations, results

    def __enter__(self) -> Any:
        self._before, _thread.mode = getattr(_thread, "mode", None), self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _thread.mode = self._before
        super().__exit__(*error)


class _Recording(_Mode):
    """The forward: keeps results, and at its end lets go of those that no saved tensor is computed from.

    `_sources` has, by storage, the kept tensors (result, place in it) that its content was computed from. What passes
    through numbers of Python is not followed: blocks compute with tensors.
    """

    def __enter__(self) -> Any:
        self._sources: dict[int, frozenset[tuple[int, int]]] = {}
        self._needed: set[tuple[int, int]] = set()
        self._inside = False
        pack, unpack = torch._C._autograd._top_saved_tensors_default_hooks(True)

        def pack_and_note(tensor: torch.Tensor) -> Any:
            self._needed |= self._sources.get(_place(tensor), frozenset())
            return pack(tensor)

        self._hooks = saved_tensors_hooks(pack_and_note, unpack)
        self._hooks.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hooks.__exit__(*error)
        # It leads back to the block's checkpoint, and so to its input, in a circle.
        del self._hooks
        for number, result in enumerate(self._results):
            result.keep_only({place for each, place in self._needed if each == number})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._inside and _name(func) in self._operations:
            return self.result_of(partial(func, *args, **kwargs))
        returned = func(*args, **kwargs)
        if self._inside:
            return returned
        sources: frozenset[tuple[int, int]] = frozenset()
        for tensor in _tensors([*args, *kwargs.values()]):
            sources |= self._sources.get(_place(tensor), sources)
        for tensor in _tensors([returned]):
            self._sources[_place(tensor)] = sources
        return returned

    def result_of(self, compute: Callable[[], Any]) -> Any:
        """The result of work that is not to be done twice; it is kept."""
        if self._inside:
            return compute()
        self._inside = True
        returned = compute()
        result = _Result(returned)
        self._inside = False
        for place, value in enumerate(result.values):
            if isinstance(value, torch.Tensor):
                self._sources[_place(value)] = frozenset([(len(self._results), place)])
        self._results.append(result)
        return returned


class _Replaying(_Mode):
    """The forward once more: what was kept comes in the order in which it was made."""

    def __enter__(self) -> Any:
        self._next = iter(self._results)
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        work = partial(func, *args, **(kwargs or {}))
        return self.result_of(work) if _name(func) in self._operations else work()

    def result_of(self, compute: Callable[[], Any]) -> Any:
        """The result that was kept of that work, which is not done."""
        return next(self._next).take()


@cache
def _name(operation: Any) -> str:
    name: str = operation._schema.name
    return name


def _place(tensor: torch.Tensor) -> int:
    """Of what holds the tensor's content, which its views and what works in place on it share."""
    return tensor.untyped_storage()._cdata


def _tensors(given: Sequence[Any]) -> list[torch.Tensor]:
    """The tensors in a list, and in lists in it."""
    found: list[torch.Tensor] = []
    for each in given:
        if isinstance(each, torch.Tensor):
            found.append(each)
        elif isinstance(each, list | tuple):
            found += _tensors(each)
    return found
