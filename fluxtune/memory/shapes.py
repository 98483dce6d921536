"""What operations return on the meta device, known from the first time.

There a result is nothing but its shape, strides and precision, which those of the arguments decide. torch works many of
them out in Python, a millisecond each, and the blocks of a model ask for the same again and again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_PLAIN = (int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format, type(None))
_IN_PLACE_PRODUCTS = {torch.ops.aten.addmm_.default}


class RememberedShapes(TorchDispatchMode):
    """Inside, an operation on the meta device is worked out once for each kind of arguments, in the whole process.

    That holds for those that make new tensors, and for pointwise ones in place. Views are quick, and all else is left
    to torch.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        in_place = _is_in_place(func)
        if not (in_place or _is_functional(func)):
            return func(*args, **kwargs)
        try:
            key = (func, _kind_of(args), tuple((name, _kind_of(value)) for name, value in kwargs.items()))
        except _NoKind:
            return func(*args, **kwargs)
        if key in _known:
            results = _known[key]
            if in_place:
                return args[0]
            return func(*args, **kwargs) if results is None else results.made()
        returned = func(*args, **kwargs)
        _known[key] = None if in_place else _results(returned, (args, kwargs))
        return returned


class _NoKind(Exception):
    """Of an argument that does not decide shapes alone: a tensor with content, a generator."""


@dataclass(frozen=True)
class _Results:
    """One tensor, or a list or tuple of them.

    Attributes:
        kind: the type of what is returned.
        tensors: shape, strides and precision of each.
    """

    kind: type
    tensors: list[tuple[torch.Size, tuple[int, ...], torch.dtype] | None]

    def made(self) -> Any:
        """Such tensors, new."""
        made = [_empty(*tensor) if tensor else None for tensor in self.tensors]
        return self.kind(made) if issubclass(self.kind, list | tuple) else made[0]


_known: dict[Any, _Results | None] = {}
"""By operation and kind of arguments. None for what works in place, or what has to be done each time."""


@cache
def _is_in_place(func: Any) -> bool:
    """Whether it writes to its first argument alone, whose shape stays, and returns that."""
    written = [argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments]
    into_first = written[:1] == [True] and not any(written[1:]) and len(func._schema.returns) == 1
    return into_first and (torch.Tag.pointwise in func.tags or func in _IN_PLACE_PRODUCTS)


@cache
def _is_functional(func: Any) -> bool:
    """Whether it neither writes to an argument nor returns a view of one."""
    return not func._schema.is_mutable and all(each.alias_info is None for each in func._schema.returns)


def _kind_of(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.is_meta:
        return value.shape, value.stride(), value.dtype, value.layout
    if isinstance(value, list | tuple):
        return tuple([_kind_of(each) for each in value])
    if isinstance(value, _PLAIN):
        return type(value), value  # 1 and 1.0 are equal, and make other precisions
    raise _NoKind


def _results(returned: Any, arguments: Any) -> _Results | None:
    """None where results are anything but new memory of their very size: some share an argument's, and do not say."""
    taken = {each.untyped_storage()._cdata for each in tree_iter(arguments) if isinstance(each, torch.Tensor)}
    found: list[tuple[torch.Size, tuple[int, ...], torch.dtype] | None] = []
    for result in returned if isinstance(returned, list | tuple) else [returned]:
        if result is None:
            found.append(None)
            continue
        if not isinstance(result, torch.Tensor) or not result.is_meta:
            return None
        tensor, storage = (result.shape, result.stride(), result.dtype), result.untyped_storage()
        if storage._cdata in taken or storage.nbytes() != _empty(*tensor).untyped_storage().nbytes():
            return None
        taken.add(storage._cdata)
        found.append(tensor)
    return _Results(type(returned), found)


def _empty(shape: torch.Size, strides: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
